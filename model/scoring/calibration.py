"""Whether a probability means what it says: expected calibration error, and the temperature that mends it.

Guo et al. 2017, arXiv 1706.04599: one temperature, fitted on validation by the likelihood of the right answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

N_BINS = 15  # of equal width, as in the paper
_LOG_BOUNDS = (np.log(0.05), np.log(20.0))  # of the temperature


def expected_calibration_error(confidence: np.ndarray, is_right: np.ndarray) -> float:
    """Mean distance of confidence and accuracy over `N_BINS` bins of confidence, weighted by what is in them.

    Args:
        confidence: float [N] in 0..1, of the first answers.
        is_right: bool [N].
    """
    bins = np.minimum((confidence * N_BINS).astype(int), N_BINS - 1)
    n, right, said = (np.bincount(bins, values, N_BINS) for values in (None, is_right.astype(float), confidence))
    return float(np.abs(right - said).sum() / n.sum())


def complete_rankings(probabilities: Sequence[Sequence[float]]) -> np.ndarray:
    """Rankings of the k best as float [N, k + 1]: the last column is all that is not among them, 0 at least."""
    k = max(map(len, probabilities))
    rows = np.zeros((len(probabilities), k + 1))
    for row, values in zip(rows, probabilities, strict=True):
        row[: len(values)] = values
        row[k] = max(0.0, 1.0 - sum(values))
    return rows


def apply_temperature(p: np.ndarray, temperature: float) -> np.ndarray:
    """p ** (1 / T), each row normalised anew; float [N, k + 1]. The order within a ranking stays."""
    with np.errstate(divide="ignore"):
        scores = np.log(p) / temperature
    scores -= scores.max(axis=1, keepdims=True)
    tempered = np.exp(scores)
    return tempered / tempered.sum(axis=1, keepdims=True)


def fit_temperature(p: np.ndarray, is_right: np.ndarray) -> float:
    """The temperature under which the right answers are likeliest.

    Args:
        p: float [N, k + 1] of `complete_rankings`.
        is_right: bool [N, k + 1]; the last column where no right answer is among the k.
    """
    from scipy.optimize import minimize_scalar

    def cost(log_temperature: float) -> float:
        right = (apply_temperature(p, float(np.exp(log_temperature))) * is_right).sum(axis=1)
        return float(-np.log(np.maximum(right, 1e-12)).mean())

    found: Any = minimize_scalar(cost, bounds=_LOG_BOUNDS, method="bounded")
    return float(np.exp(found.x))
