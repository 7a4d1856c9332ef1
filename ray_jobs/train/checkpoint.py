"""Training checkpoints: the trained parameters, their Adam moments and the cursor. Frozen weights are never in them.

Nothing random is stored: data order and dropout are drawn from (seed, epoch, step), so a cursor is enough to go on
with the very next step. A checkpoint is written under another name, flushed to the disk and renamed when complete, so a
kill at any moment, or a full disk, leaves the one before it as it was.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from data_pipeline.errors import InputError

PARAMETERS_FILE = "trainables.safetensors"
MOMENTS_FILE = "optimizer.safetensors"
STATE_FILE = "state.json"
FP32_BYTES = 4
COPIES = 3  # a parameter and its two moments
HEADER_ALLOWANCE_BYTES = 1 << 20
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Cursor:
    """Where training stands.

    Attributes:
        step: optimizer steps taken; the next step to take has this number.
        epoch: epochs completed.
        mlflow_run_id: the one run that the whole training logs to.
        epoch_loss_sum: of the losses of the steps already taken in the epoch under way.
        epoch_steps: how many steps these are.
    """

    step: int
    epoch: int
    mlflow_run_id: str
    epoch_loss_sum: float = 0.0
    epoch_steps: int = 0


class CheckpointStore:
    """The checkpoints of one job: folders `step-<number>`, of which the last and the best are kept."""

    def __init__(self, folder: Path, score_key: str) -> None:
        self.folder = folder
        self._score_key = score_key

    def check_space(self, n_parameters: int) -> None:
        """InputError unless one more checkpoint of so many trained parameters fits on the disk."""
        self.folder.mkdir(parents=True, exist_ok=True)
        needed = COPIES * FP32_BYTES * n_parameters + HEADER_ALLOWANCE_BYTES
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise self._full(f"a checkpoint takes {needed / 2**20:.1f} MiB and {free / 2**20:.1f} MiB are free")

    def save(
        self, parameters: dict[str, Tensor], moments: dict[str, Tensor], cursor: Cursor, metrics: dict[str, Any]
    ) -> Path:
        """Write a checkpoint, then remove those that are neither the last nor the best; one process alone may call it.

        Returns:
            its folder.

        Raises:
            InputError: the disk is full; earlier checkpoints are intact.
        """
        final = self.folder / f"step-{cursor.step:08d}"
        partial = final.with_suffix(".partial")
        self.folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir()
            save_file(parameters, partial / PARAMETERS_FILE)
            save_file(moments, partial / MOMENTS_FILE)
            state = {"cursor": asdict(cursor), "metrics": metrics}
            (partial / STATE_FILE).write_text(json.dumps(state), encoding="utf-8")
            for path in [*partial.iterdir(), partial]:
                _flush_to_disk(path)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            if getattr(error, "errno", None) in FULL_DISK or "No space left" in str(error):
                raise self._full(f"the checkpoint of step {cursor.step} could not be written") from error
            raise
        _check_size(partial, parameters)
        shutil.rmtree(final, ignore_errors=True)  # of the same step: what a run writes again is equal
        os.replace(partial, final)
        _flush_to_disk(self.folder)
        self._prune()
        return final

    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted(path for path in self.folder.glob("step-*") if not path.suffix and (path / STATE_FILE).is_file())

    def find_last(self) -> Path | None:
        return max(self.checkpoints(), default=None)

    def find_best(self) -> Path | None:
        """The one with the highest score, the later of two equals; without any score, the last."""
        scored = [(score, path) for path in self.checkpoints() if (score := self._score(path)) is not None]
        return max(scored)[1] if scored else self.find_last()

    def _score(self, checkpoint: Path) -> float | None:
        return load_metrics(checkpoint).get(self._score_key)

    def _prune(self) -> None:
        kept = {self.find_last(), self.find_best()}
        for path in self.checkpoints():
            if path not in kept:
                doomed = path.with_suffix(".removed")  # a folder half removed must not look like a checkpoint
                os.replace(path, doomed)
                shutil.rmtree(doomed)
        for leftover in self.folder.glob("step-*.*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def _full(self, reason: str) -> InputError:
        last = self.find_last()
        intact = f"{last} is intact and the same command goes on from it" if last else "there is none yet"
        return InputError(
            f"the disk of {self.folder} is full: {reason}; free some space or move runs_dir. "
            f"As for earlier checkpoints: {intact}."
        )


def load_cursor(folder: Path) -> Cursor:
    try:
        return Cursor(**_load_state(folder)["cursor"])
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder} is not a complete training checkpoint ({error}); use an earlier one.") from error


def load_metrics(folder: Path) -> dict[str, Any]:
    """What was reported with the checkpoint."""
    return _load_state(folder).get("metrics", {})


def load_parameters(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / PARAMETERS_FILE)


def load_moments(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / MOMENTS_FILE)


def _load_state(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{folder} is not a complete training checkpoint ({error}); use an earlier one.") from error


def _check_size(folder: Path, parameters: dict[str, Tensor]) -> None:
    """That nothing but the trained part is in it."""
    size = sum(path.stat().st_size for path in folder.iterdir())
    allowed = COPIES * FP32_BYTES * sum(value.numel() for value in parameters.values()) + HEADER_ALLOWANCE_BYTES
    if size > allowed:
        raise RuntimeError(f"the checkpoint has {size} bytes where the trained parameters account for {allowed}")


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
