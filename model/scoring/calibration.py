"""Whether a probability means what it says: expected calibration error, and the temperature that mends it.

Guo et al. 2017, arXiv 1706.04599: one temperature, fitted on validation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Decision = tuple[int, np.ndarray]  # the child that is taken; float64 [C], log probabilities of it and its siblings

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


def fit_temperature(ways: Sequence[Sequence[Decision]], is_right: np.ndarray) -> float:
    """The temperature of every decision under which first answers are as often right as their probabilities say.

    Their mean is what is met, not the likelihood, which one temperature cannot raise where some questions have one
    right answer and others several that share its probability. One near 1 is preferred as strongly as one question
    speaks for it, since a model that is always right on a few would be taken for sure of everything.

    Args:
        ways: by question, the decisions on the way to its first answer.
        is_right: bool [N], whether that is among the right ones, which may be several.
    """
    from scipy.optimize import brentq

    def excess(log_temperature: float) -> float:
        """How many more are right than their probabilities say; it grows with the temperature."""
        log_p = [log_probability(way, float(np.exp(log_temperature))) for way in ways]
        return float(is_right.sum() - np.exp(log_p).sum() + log_temperature)

    low, high = _LOG_BOUNDS
    if excess(low) > 0:
        return float(np.exp(low))
    if excess(high) < 0:
        return float(np.exp(high))
    found: Any = brentq(excess, low, high, xtol=1e-4)
    return float(np.exp(found))


def log_probability(way: Sequence[Decision], temperature: float) -> float:
    """Of the answer at the end of a way of decisions, under a temperature of each."""
    total = 0.0
    for taken, log_p in way:
        scores = log_p / temperature
        total += float(scores[taken] - np.logaddexp.reduce(scores))
    return total
