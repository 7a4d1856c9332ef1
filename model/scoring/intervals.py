"""95 % confidence intervals for the scorers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

Z_95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution
N_RESAMPLES = 1000
BOOTSTRAP_SEED = 0


@dataclass(frozen=True)
class Estimate:
    """A value with the ends of its 95 % confidence interval, all fractions."""

    value: float
    low: float
    high: float


def estimate_proportion(hits: np.ndarray) -> Estimate:
    """Share of ones in `hits` (0.0 or 1.0, float64 [N], N > 0) with its Wilson score interval (Wilson 1927)."""
    n = len(hits)
    share = float(np.mean(hits))
    centre = (share + Z_95**2 / (2 * n)) / (1 + Z_95**2 / n)
    half = Z_95 / (1 + Z_95**2 / n) * math.sqrt(share * (1 - share) / n + Z_95**2 / (4 * n**2))
    # the formula gives exactly 0 or 1 at the ends; rounding would miss it by an ulp
    low = 0.0 if share == 0.0 else max(0.0, centre - half)
    high = 1.0 if share == 1.0 else min(1.0, centre + half)
    return Estimate(share, low, high)


def estimate_mean(values: np.ndarray) -> Estimate:
    """Mean of `values` (fractions, float64 [N], N > 0) with a seeded percentile-bootstrap interval.

    A resample is drawn as counts of the distinct values, which is the same distribution as drawing N of them one by one
    and takes time by distinct values, not by N. For the draws, values are rounded to 1e-4.
    """
    distinct, counts = np.unique(np.round(values, 4), return_counts=True)
    draws = np.random.default_rng(BOOTSTRAP_SEED).multinomial(len(values), counts / len(values), size=N_RESAMPLES)
    means = draws @ distinct / len(values)  # [N_RESAMPLES]
    low, high = np.quantile(means, (0.025, 0.975))
    mean = float(np.mean(values))
    return Estimate(mean, min(mean, float(low)), max(mean, float(high)))
