"""95 % confidence intervals for the scorers, by SciPy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
N_RESAMPLES = 1000
BOOTSTRAP_SEED = 0
_DRAWS_AT_ONCE = 1 << 16  # of all resamples; few enough for the processor's cache


@dataclass(frozen=True)
class Estimate:
    """A value with the ends of its 95 % confidence interval, all fractions."""

    value: float
    low: float
    high: float


def estimate_proportion(hits: np.ndarray) -> Estimate:
    """Share of ones in `hits` (0.0 or 1.0, float64 [N], N > 0) with its Wilson score interval (Wilson 1927)."""
    from scipy import stats  # most of a second of import time, which reading the command line need not wait for

    interval = stats.binomtest(int(hits.sum()), len(hits)).proportion_ci(CONFIDENCE, method="wilson")
    return Estimate(float(np.mean(hits)), float(interval.low), float(interval.high))


def estimate_mean(values: np.ndarray) -> Estimate:
    """Mean of `values` (fractions, float64 [N], N > 0) with a seeded percentile-bootstrap interval (Efron 1979)."""
    from scipy import stats

    mean = float(np.mean(values))
    if len(values) == 1:  # every resample is the sample, which SciPy refuses
        return Estimate(mean, mean, mean)
    interval = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=N_RESAMPLES,
        batch=max(1, _DRAWS_AT_ONCE // len(values)),
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(BOOTSTRAP_SEED),
    ).confidence_interval
    # the mean of equal values may miss a resample's mean by an ulp
    return Estimate(mean, min(mean, float(interval.low)), max(mean, float(interval.high)))
