"""The confidence intervals against SciPy and against their definition."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from model.scoring.intervals import Estimate, estimate_mean, estimate_proportion


@pytest.mark.parametrize(("hits", "n"), [(0, 1), (1, 1), (0, 13), (13, 13), (7, 13), (1002, 1439), (1, 100_000)])
def test_wilson_interval_equals_scipy(hits: int, n: int) -> None:
    estimate = estimate_proportion(np.array([1.0] * hits + [0.0] * (n - hits)))
    expected = stats.binomtest(hits, n).proportion_ci(0.95, method="wilson")
    assert estimate.value == pytest.approx(hits / n, abs=1e-12)
    assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_bootstrap_interval_agrees_with_scipy() -> None:
    values = np.random.default_rng(3).choice([0.0, 1 / 3, 0.5, 1.0], size=200)
    estimate = estimate_mean(values)
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=5000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert estimate.value == np.mean(values)
    assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high), abs=0.008)


def test_bootstrap_interval_is_reproducible_and_holds_the_mean() -> None:
    values = np.array([0.0, 0.25, 1.0])
    assert estimate_mean(values) == estimate_mean(values)
    assert estimate_mean(values).low < values.mean() < estimate_mean(values).high


def test_equal_values_leave_no_doubt_for_the_bootstrap() -> None:
    third = 1 / 3  # rounded for the draws: the ends must still enclose the exact mean
    estimate = estimate_mean(np.full(9, third))
    assert estimate.low <= estimate.value <= estimate.high
    assert estimate.high - estimate.low < 1e-4
    assert estimate_mean(np.ones(4)) == Estimate(1.0, 1.0, 1.0)
