"""Learning-rate schedules as functions of the optimizer step: nothing to save, nothing to restore."""

from __future__ import annotations

import math

from ray_jobs.train_options import TrainOptions


def learning_rate(train: TrainOptions, step: int, total_steps: int) -> float:
    """The rate that optimizer step `step` (0-based) of `total_steps` uses, by `train.schedule`."""
    if train.schedule == "reference":
        return reference_lr(step, total_steps, train.lr)
    return linear_lr(step, total_steps, train.lr, train.warmup_steps)


def linear_lr(step: int, total_steps: int, peak_lr: float, warmup_steps: int) -> float:
    """Linear warm-up to the peak, then linear decay to 0 (MLLM-Tool Table 4).

    Args:
        step: 0-based optimizer step that is about to be taken.
        total_steps: of the whole training.
        peak_lr: reached at step `warmup_steps`.
        warmup_steps: cut to a tenth of very short trainings, so that they train at all.
    """
    warmup_steps = min(warmup_steps, total_steps // 10)
    if step < warmup_steps:
        return peak_lr * (step + 1) / (warmup_steps + 1)
    return peak_lr * (total_steps - step) / (total_steps - warmup_steps)


def reference_lr(step: int, total_steps: int, peak_lr: float) -> float:
    """What MLLM-Tool's released code really uses: logarithmic warm-up over a tenth of the run, then linear decay.

    It steps DeepSpeed 0.9.5's WarmupDecayLR after each update, so update 0 still has the optimizer's own full rate, and
    update 1 has the schedule's first value, which is 0.

    Args:
        step: 0-based optimizer step that is about to be taken.
        total_steps: of the whole training.
        peak_lr: of update 0, and at the end of the warm-up.
    """
    if step == 0:
        return peak_lr
    place, warmup_steps = step - 1, reference_warmup(total_steps)
    if place < warmup_steps:
        return peak_lr * math.log(place + 1) / math.log(warmup_steps)
    return peak_lr * max(0.0, (total_steps - place) / max(1, total_steps - warmup_steps))


def reference_warmup(total_steps: int) -> int:
    """Warm-up steps of the released code, which overrides the 10 of its own config and of the paper."""
    return max(10, int(0.1 * total_steps))
