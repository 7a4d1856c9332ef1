"""The calibration of first answers: fitted on the validation split, judged on the test split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from data_pipeline.records.schema import ToolRecord
from model.scoring.calibration import Calibration, expected_calibration_error, fit_calibration


def find_calibration(records: Sequence[ToolRecord], decoded: Sequence[dict[str, Any]]) -> Calibration | None:
    """How often first answers are right, by the probabilities that they have.

    Args:
        records: of the validation split.
        decoded: what the actors gave for each.

    Returns:
        None where there is no question.
    """
    return fit_calibration(*read_first(records, decoded)) if records else None


def read_first(records: Sequence[ToolRecord], decoded: Sequence[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Probability float64 [N] of each first answer, and bool [N], whether it is among the right ones."""
    p = np.array([row["probabilities"][0] for row in decoded])
    pairs = zip(records, decoded, strict=True)
    return p, np.array([row["tool_ids"][0] in record.valid_tool_ids for record, row in pairs])


def measure_calibration(
    records: Sequence[ToolRecord], decoded: Sequence[dict[str, Any]], calibration: Calibration, n_val: int
) -> dict[str, float]:
    """Expected calibration error of the first answers, as they are and calibrated.

    Args:
        records: of the test split.
        decoded: what the actors gave for each.
        calibration: that was fitted.
        n_val: on so many questions.
    """
    p, is_right = read_first(records, decoded)
    return {
        "n_val": n_val,
        "slope": calibration.slope,
        "offset": calibration.offset,
        "ece_uncalibrated": expected_calibration_error(p, is_right),
        "ece": expected_calibration_error(calibration.of_first(p), is_right),
    }


def describe_calibration(found: dict[str, float] | None) -> list[str]:
    """Lines of the report."""
    if found is None:
        return []
    return [
        f"Calibration of the first answer: expected calibration error {found['ece_uncalibrated']:.3f}, and "
        f"{found['ece']:.3f} with log-odds times {found['slope']:.2f} plus {found['offset']:.2f}, fitted on "
        f"{found['n_val']} questions of the validation split; `export` writes it into the bundle.",
        "",
    ]
