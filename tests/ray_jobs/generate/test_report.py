"""What is said of generated rows to those who look at a few before they pay for all."""

from __future__ import annotations

from data_pipeline.records import checks
from ray_jobs.generate.report import describe_verdicts


def test_a_rows_verdicts_on_a_line() -> None:
    row = dict.fromkeys(checks.COLUMNS, "") | {checks.CHECK_FORMAT: "ok", "instruction": "Mend it."}
    assert describe_verdicts(row) == "form: ok", "nothing else was asked for"
    row |= {checks.CHECK_FORMAT: "no call", checks.CHECK_CALL: "failed: bad_media", checks.CHECK_STRICT: "no"}
    row |= {checks.CHECK_BROAD: "unclear", checks.CHECK_LEAK: "medium", checks.REVIEW: "keep"}
    assert describe_verdicts(row) == (
        "form: no call; call: failed: bad_media; strict judge: no; generous judge: unclear; leak: medium; review: keep"
    )
