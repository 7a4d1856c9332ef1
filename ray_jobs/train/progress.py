"""What a worker tells of a running training: how far it is every second, one line an epoch."""

from __future__ import annotations

import time
from typing import Any

from ray_jobs.worker_output import tell_end, tell_line, tell_progress

TELL_EVERY_S = 1.0


class StepProgress:
    """Steps done, with the loss, token accuracy, samples/s and data wait of the last second or more.

    Args:
        job: name of the Ray Train run.
        end_step: where the training ends.
        first_step: where it begins.
        is_shown: rank 0 speaks for all.
    """

    def __init__(self, job: str, end_step: int, first_step: int, is_shown: bool) -> None:
        self._job, self._end_step, self._step = job, end_step, first_step
        self._is_shown = is_shown
        self._note = ""  # of the last steps
        self._last_told = self._last_step_time = time.perf_counter()
        self._rows = self._seconds = self._waited = 0.0
        if is_shown and first_step:
            tell_line(job, f"resuming at step {first_step} of {end_step}")
        self._tell("")

    def update(self, step: int, metrics: dict[str, float]) -> dict[str, float]:
        """Take note of a finished step; returns its rates."""
        now = time.perf_counter()
        taken_s, self._last_step_time = now - self._last_step_time, now
        self._step = step + 1
        self._rows += metrics["train/rows"]
        self._seconds += taken_s
        self._waited += metrics["train/data_wait_s"]
        rates = {
            "train/samples_per_s": metrics["train/rows"] / taken_s,
            "train/data_wait_frac": metrics["train/data_wait_s"] / taken_s,
        }
        if now - self._last_told >= TELL_EVERY_S or self._step == self._end_step:
            self._note = (
                f"loss={metrics['train/loss']:.4f} {_name_accuracies(metrics)}"
                f"samples/s={self._rows / self._seconds:.1f} lr={metrics['train/lr']:.2e} "
                f"data_wait={100 * self._waited / self._seconds:.1f}%"
            )
            self._tell(self._note)
            self._last_told, self._rows, self._seconds, self._waited = now, 0.0, 0.0, 0.0
        return rates

    def start_validation(self) -> None:
        self._tell("validating")

    def show_epoch(self, report: dict[str, Any]) -> None:
        groups = ("", "/with_ambiguity", "/modality_text", "/modality_image", "/modality_audio", "/modality_video")
        shown = {
            f"val_acc{group.replace('/modality', '').replace('/', '_')}": report.get("val/tool_accuracy" + group)
            for group in groups
        }
        shown |= {f"val_{name}": report.get(f"val/dialogues/{name}") for name in ("sr_t", "sr", "malformed_frac")}
        shown["val_retrieval"] = report.get("val/retrieval_accuracy")
        scores = " ".join(f"{name}={value:.3f}" for name, value in shown.items() if value is not None)
        if self._is_shown:
            tell_line(
                self._job, f"epoch={report['epoch']} mean_loss={report['train/epoch_loss']:.4f} {scores}".rstrip()
            )
        self._tell(self._note)
        self.resume_clock()

    def resume_clock(self) -> None:
        """Leave what was not a step (a validation, a checkpoint) out of the next step's time."""
        self._last_step_time = time.perf_counter()

    def end(self) -> None:
        """Say that the training is over."""
        if self._is_shown:
            tell_end(self._job)

    def _tell(self, note: str) -> None:
        if self._is_shown:
            tell_progress(self._job, self._step, self._end_step, "steps", note)


def _name_accuracies(metrics: dict[str, float]) -> str:
    """Those of what the loss is about, each with a space behind it."""
    names = {
        "token_acc": "train/token_accuracy",
        "choice_acc": "train/choice_accuracy",
        "retrieval_acc": "train/retrieval_accuracy",
    }
    return "".join(f"{short}={metrics[name]:.3f} " for short, name in names.items() if name in metrics)
