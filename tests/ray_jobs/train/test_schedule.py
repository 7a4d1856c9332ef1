"""The learning rate as a function of the step: the paper's, and that of the released code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ray_jobs.train.schedule import learning_rate, linear_lr, reference_lr, reference_warmup
from ray_jobs.train_options import TrainOptions

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


def test_the_reference_rate_is_that_of_the_released_code(shared_dir: Path) -> None:
    for case in json.loads((shared_dir / "oracle/schedule/lr_cases.json").read_text())["cases"]:
        total_steps = case["total_num_steps"]
        assert reference_warmup(total_steps) == case["warmup_num_steps"]
        for step, expected in case["lr_used_by_update"].items():
            found = reference_lr(int(step), total_steps, case["warmup_max_lr"])
            assert found == pytest.approx(expected, rel=0, abs=1e-12), f"update {step} of {total_steps}"


def test_the_schedule_is_chosen_by_the_config() -> None:
    train = TrainOptions(lr=1e-3, warmup_steps=3)
    assert learning_rate(train, 1, 100) == linear_lr(1, 100, 1e-3, 3) > 0
    assert learning_rate(train.model_copy(update={"schedule": "reference"}), 1, 100) == 0
