"""The confidence intervals against published values and against distributions that are known exactly."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from model.scoring.intervals import N_RESAMPLES, Estimate, estimate_mean, estimate_proportion


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_equals_the_published_one(hits: int, n: int, low: float, high: float) -> None:
    """Newcombe, Statistics in Medicine 17 (1998), table I, method 3."""
    estimate = estimate_proportion(np.array([1.0] * hits + [0.0] * (n - hits)))
    assert estimate.value == pytest.approx(hits / n, abs=1e-12)
    assert (round(estimate.low, 4), round(estimate.high, 4)) == (low, high)


@pytest.mark.parametrize("n", [1, 13, 100_000])
def test_wilson_interval_ends_exactly_at_0_and_1(n: int) -> None:
    assert estimate_proportion(np.zeros(n)).low == 0.0
    assert estimate_proportion(np.ones(n)).high == 1.0


def test_bootstrap_interval_of_ones_and_zeros_is_binomial() -> None:
    """The mean of a resample of them has a known distribution: binomial."""
    n, hits = 200, 60
    estimate = estimate_mean(np.array([1.0] * hits + [0.0] * (n - hits)))
    assert estimate.value == pytest.approx(hits / n, abs=1e-12)
    for end, level in ((estimate.low, 0.025), (estimate.high, 0.975)):
        # three standard errors of the share of resamples below the end
        slack = 3 * (level * (1 - level) / N_RESAMPLES) ** 0.5
        nearest = stats.binom.ppf([level - slack, level + slack], n, hits / n) / n
        assert nearest[0] <= end <= nearest[1]


def test_bootstrap_interval_is_reproducible_and_holds_the_mean() -> None:
    values = np.array([0.0, 0.25, 1.0])
    assert estimate_mean(values) == estimate_mean(values)
    assert estimate_mean(values).low < values.mean() < estimate_mean(values).high


def test_equal_values_leave_no_doubt_for_the_bootstrap() -> None:
    estimate = estimate_mean(np.full(9, 1 / 3))
    assert estimate.low <= estimate.value <= estimate.high
    assert estimate.high - estimate.low < 1e-12
    assert estimate_mean(np.ones(4)) == Estimate(1.0, 1.0, 1.0)
    assert estimate_mean(np.array([0.25])) == Estimate(0.25, 0.25, 0.25)


def test_the_command_line_starts_without_scipys_statistics() -> None:
    code = "import sys; from ray_jobs.cli import build_parser; build_parser(); print('scipy.stats' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert result.stdout.strip() == "False"
