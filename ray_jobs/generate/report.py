"""What `generate` says of its result: how much was kept, why the rest was not, and examples of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from data_pipeline.instruct.instructions import Noise
from data_pipeline.instruct.samples import Sample
from data_pipeline.markdown import render_table
from data_pipeline.records import checks
from data_pipeline.records.schema import SPLITS

_KINDS = ("positive", "context", "chain", "negative")


def describe_checks(counts: Mapping[str, Mapping[str, int]]) -> str:
    """Markdown: of each column of checks (`data_pipeline.records.checks`), how many rows have which verdict."""
    lines = (
        f"- `{column}`: {', '.join(f'{verdict} {n}' for verdict, n in verdicts.items())}"
        for column, verdicts in counts.items()
    )
    return "\n".join(["## Checks", "", *lines])


def describe_verdicts(row: Mapping[str, Any]) -> str:
    """What the checks say of one row, on a line; of those that were asked for."""
    columns = (
        ("form", checks.CHECK_FORMAT),
        ("call", checks.CHECK_CALL),
        ("strict judge", checks.CHECK_STRICT),
        ("generous judge", checks.CHECK_BROAD),
        ("leak", checks.CHECK_LEAK),
        ("review", checks.REVIEW),
    )
    return "; ".join(f"{name}: {row[column]}" for name, column in columns if row.get(column))


def render_report(
    counts: dict[str, Any], samples: Sequence[tuple[Sample, Mapping[str, Any]]], noise: Sequence[Noise]
) -> str:
    """Markdown.

    Args:
        counts: what `generate` returns.
        samples: examples of what was kept, with their rows.
        noise: examples of what was not.
    """
    requests, by_split = counts["requests"], counts["samples"]
    rows = [[split, *(str(by_split.get(split, {}).get(kind, 0)) for kind in _KINDS)] for split in SPLITS]
    reasons = ", ".join(f"{reason} {n}" for reason, n in sorted(counts["rejected"].items())) or "none"
    parts = [
        "# Generated dialogues",
        "",
        render_table(["split", *_KINDS], rows),
        "",
        f"{counts['images']} pictures; requests: {requests['sent']} sent, {requests['from_cache']} answered before, "
        f"{requests['failed']} failed; {counts['kept']} instructions kept, {counts['repeated']} of them said before; "
        f"rejected by reason: {reasons}. Spent: {counts['money']:.4f}"
        + (" (the budget is spent: run again to go on)." if counts["is_budget_spent"] else "."),
        "",
        describe_checks(counts["checks"]),
        "",
        "## Kept",
        "",
    ]
    for sample, row in samples:
        said = str(row["instruction"]).rpartition("New input: ")[2].partition("\n")[0]
        parts += [f"- {sample.split}, {sample.kind}: {said}", *(f"      {line}" for line in row["output"].splitlines())]
        parts.append(f"  - {describe_verdicts(row)}")
    parts += ["", "## Left out", "", *(f"- {each.reason}: {each.why}: `{each.line}`" for each in noise)]
    return "\n".join(parts)
