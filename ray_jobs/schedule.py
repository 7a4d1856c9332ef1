"""Learning-rate schedules as functions of the optimizer step: nothing to save, nothing to restore."""

from __future__ import annotations


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
