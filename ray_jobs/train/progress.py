"""What a person sees of a running training: one dense line every few seconds, one line an epoch."""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np

PROGRESS_INTERVAL_S = 5.0


def say(line: str) -> None:
    """Straight to stdout, which Ray shows in the driver: Ray Train's patched `print` would show each line twice."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


class Progress:
    """One dense line every few seconds: step, loss, token accuracy, samples/s, data wait, time left."""

    def __init__(self, total_steps: int, first_step: int, is_shown: bool) -> None:
        self._total_steps = total_steps
        self._is_shown = is_shown
        self._last_line = self._last_step_time = time.perf_counter()
        self._taken_s: list[float] = []
        self._rows = self._seconds = self._waited = 0.0
        if is_shown and first_step:
            say(f"resuming at step {first_step} of {total_steps}")

    def update(self, step: int, metrics: dict[str, float]) -> dict[str, float]:
        """Take note of a finished step; returns its rates."""
        now = time.perf_counter()
        taken_s, self._last_step_time = now - self._last_step_time, now
        self._taken_s = [*self._taken_s[-49:], taken_s]
        self._rows += metrics["train/rows"]
        self._seconds += taken_s
        self._waited += metrics["train/data_wait_s"]
        rates = {
            "train/samples_per_s": metrics["train/rows"] / taken_s,
            "train/data_wait_frac": metrics["train/data_wait_s"] / taken_s,
        }
        if self._is_shown and (now - self._last_line >= PROGRESS_INTERVAL_S or step + 1 == self._total_steps):
            eta_s = float(np.median(self._taken_s)) * (self._total_steps - step - 1)
            say(
                f"step={step + 1}/{self._total_steps} loss={metrics['train/loss']:.4f} "
                f"token_acc={metrics['train/token_accuracy']:.3f} lr={metrics['train/lr']:.2e} "
                f"samples/s={self._rows / self._seconds:.1f} data_wait={100 * self._waited / self._seconds:.1f}% "
                f"eta={eta_s:.0f}s"
            )
            self._last_line, self._rows, self._seconds, self._waited = now, 0.0, 0.0, 0.0
        return rates

    def show_epoch(self, report: dict[str, Any]) -> None:
        groups = ("", "/with_ambiguity", "/modality_text", "/modality_image", "/modality_audio", "/modality_video")
        shown = {
            f"val_acc{group.replace('/modality', '').replace('/', '_')}": report.get("val/tool_accuracy" + group)
            for group in groups
        }
        shown |= {f"val_{name}": report.get(f"val/dialogues/{name}") for name in ("sr_t", "sr", "malformed_frac")}
        scores = " ".join(f"{name}={value:.3f}" for name, value in shown.items() if value is not None)
        say(f"epoch={report['epoch']} mean_loss={report['train/epoch_loss']:.4f} {scores}")
        self.resume_clock()

    def resume_clock(self) -> None:
        """Leave what was not a step (a validation, a checkpoint) out of the next step's time."""
        self._last_step_time = time.perf_counter()
