"""The learning rate as a function of the step (MLLM-Tool Table 4: linear warm-up, linear decay)."""

from __future__ import annotations

import numpy as np
import pytest

from ray_jobs.schedule import linear_lr

PEAK = 5e-4


def test_it_rises_to_the_peak_and_falls_to_zero_in_straight_lines() -> None:
    rates = [linear_lr(step, 200, PEAK, 10) for step in range(200)]
    assert rates[10] == PEAK == max(rates)
    assert rates[0] == pytest.approx(PEAK / 11), "the first step already trains"
    changes = np.diff(rates)
    assert changes[:10] == pytest.approx(np.full(10, PEAK / 11))
    assert changes[10:] == pytest.approx(np.full(189, -PEAK / 190))
    assert linear_lr(200, 200, PEAK, 10) == 0


def test_no_warm_up_starts_at_the_peak() -> None:
    assert linear_lr(0, 50, PEAK, 0) == PEAK


@pytest.mark.parametrize("total_steps", [1, 2, 5, 30])
def test_a_short_training_trains_at_every_step(total_steps: int) -> None:
    """A warm-up longer than the training would leave it at a fraction of the peak."""
    rates = [linear_lr(step, total_steps, PEAK, 10) for step in range(total_steps)]
    assert min(rates) > 0
    assert max(rates) == PEAK
    assert rates.index(PEAK) <= total_steps // 10
