"""Whether a probability means what it says: expected calibration error, and the scaling that mends it.

Platt scaling (Platt 1999, "Probabilistic outputs for support vector machines") of the first answer's log-odds, fitted
on validation. Temperature scaling (Guo et al. 2017, arXiv 1706.04599) is its form without the offset, which cannot tell
that a first answer is right more often than the model says where several right answers share the probability.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logit

N_BINS = 15  # of equal width, as in Guo et al.
_SMALLEST = 1e-12  # a probability that is told from 0, or from 1
_MIN_SLOPE = 0.05  # what is likelier stays likelier


def expected_calibration_error(confidence: np.ndarray, is_right: np.ndarray) -> float:
    """Mean distance of confidence and accuracy over `N_BINS` bins of confidence, weighted by what is in them.

    Args:
        confidence: float [N] in 0..1, of the first answers.
        is_right: bool [N].
    """
    bins = np.minimum((confidence * N_BINS).astype(int), N_BINS - 1)
    n, right, said = (np.bincount(bins, values, N_BINS) for values in (None, is_right.astype(float), confidence))
    return float(np.abs(right - said).sum() / n.sum())


@dataclass(frozen=True)
class Calibration:
    """How often a first answer is right, from the probability that the model gives it.

    Attributes:
        slope, offset: log-odds of being right = slope · log-odds of the model + offset.
    """

    slope: float = 1.0
    offset: float = 0.0

    def of_first(self, p: np.ndarray) -> np.ndarray:
        """Probabilities [N] in 0..1 of first answers, calibrated. One that is sure is so because it has no rival."""
        scaled = expit(self.slope * logit(np.clip(p, _SMALLEST, 1 - _SMALLEST)) + self.offset)
        # never so low that another answer could come before it
        return np.where(p >= 1, 1.0, np.maximum(scaled, np.minimum(p, 0.5)))

    def of_ranking(self, probabilities: Sequence[float]) -> list[float]:
        """Those of one question, the likeliest first: the others share what the first one leaves as they did before.

        So their order stays, and what summed to 1 still does; some of the answers may be left out.
        """
        if not probabilities:
            return []
        first, *others = probabilities
        scaled = float(self.of_first(np.array(first)))
        left = (1 - scaled) / (1 - first) if first < 1 else 1.0
        return [scaled, *(p * left for p in others)]


UNCALIBRATED = Calibration()


def fit_calibration(p: np.ndarray, is_right: np.ndarray) -> Calibration:
    """The likeliest calibration, with Platt's targets: a few questions that are all right make no certainty so.

    Args:
        p: float [N], what a model gives its first answers.
        is_right: bool [N], whether each is among the right ones, which may be several.
    """
    odds = logit(np.clip(p, _SMALLEST, 1 - _SMALLEST))
    n_right, n_wrong = int(is_right.sum()), int((~is_right).sum())
    targets = np.where(is_right, (n_right + 1) / (n_right + 2), 1 / (n_wrong + 2))

    def cost(values: np.ndarray) -> float:
        says = values[0] * odds + values[1]
        return float(np.logaddexp(0, says).sum() - (targets * says).sum())

    found = minimize(cost, np.array([1.0, 0.0]), bounds=[(_MIN_SLOPE, None), (None, None)], method="L-BFGS-B")
    slope, offset = found.x.tolist()
    return Calibration(slope, offset)
