"""Training checkpoints: the trained parameters, their Adam moments and the cursor. Frozen weights are never in them.

Nothing random is stored: data order and dropout are drawn from (seed, epoch, step), so a cursor is enough to go on
with the very next step. A checkpoint appears whole (`data_pipeline.storage`), so a kill at any moment, or a full disk,
leaves the one before it as it was. It may lie in a bucket.
"""

from __future__ import annotations

import errno
import json
import shutil
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from data_pipeline import storage
from data_pipeline.errors import InputError
from data_pipeline.locations import Location

PARAMETERS_FILE = "trainables.safetensors"
MOMENTS_FILE = "optimizer.safetensors"
STATE_FILE = "state.json"
FP32_BYTES = 4
COPIES = 3  # a parameter and its two moments
HEADER_ALLOWANCE_BYTES = 1 << 20
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


def count_bytes(n_parameters: int) -> int:
    """What a checkpoint of so many trained parameters takes at the most."""
    return COPIES * FP32_BYTES * n_parameters + HEADER_ALLOWANCE_BYTES


@dataclass(frozen=True)
class Cursor:
    """Where training stands.

    Attributes:
        step: optimizer steps taken; the next step to take has this number.
        epoch: epochs completed.
        mlflow_run_id: the one run that the whole training logs to.
        epoch_loss_sum: of the losses of the steps already taken in the epoch under way.
        epoch_steps: how many steps these are.
        skipped_steps: of all steps taken, those that changed nothing (`ray_jobs.train.zero.has_skipped`).
        loss_scaler: state of float16's; empty in other dtypes.
    """

    step: int
    epoch: int
    mlflow_run_id: str
    epoch_loss_sum: float = 0.0
    epoch_steps: int = 0
    skipped_steps: int = 0
    loss_scaler: dict[str, float] = field(default_factory=dict)


class CheckpointStore:
    """The checkpoints of one job: folders `step-<number>`, of which the last and the best are kept."""

    def __init__(self, folder: Location, score_key: str) -> None:
        self.folder = folder
        self._score_key = score_key

    def check_space(self, n_parameters: int) -> None:
        """InputError unless one more checkpoint of so many trained parameters fits on the disk.

        What a killed writer left is cleared. On its way into a bucket a checkpoint lies on the disk for a while.
        """
        disk = Path(tempfile.gettempdir())
        if isinstance(self.folder, Path):
            disk = self.folder
            disk.mkdir(parents=True, exist_ok=True)
            storage.clear_partials(disk)
        needed = count_bytes(n_parameters)
        free = shutil.disk_usage(disk).free
        if free < needed:
            raise self._full(f"a checkpoint takes {needed / 2**20:.1f} MiB and {free / 2**20:.1f} MiB are free")

    def save(
        self, parameters: dict[str, Tensor], moments: dict[str, Tensor], cursor: Cursor, metrics: dict[str, Any]
    ) -> Location:
        """Write a checkpoint, then remove those that are neither the last nor the best; one process alone may call it.

        Returns:
            its folder.

        Raises:
            InputError: the disk is full; earlier checkpoints are intact.
        """
        final = self.folder / f"step-{cursor.step:08d}"
        try:
            with storage.replacing_folder(final) as partial, storage.staged_locally(partial) as folder:
                save_file(parameters, folder / PARAMETERS_FILE)
                save_file(moments, folder / MOMENTS_FILE)
                storage.write_file(folder / STATE_FILE, json.dumps({"cursor": asdict(cursor), "metrics": metrics}))
                _check_size(folder, parameters)
        except (OSError, SafetensorError) as error:
            if getattr(error, "errno", None) in FULL_DISK or "No space left" in str(error):
                raise self._full(f"the checkpoint of step {cursor.step} could not be written") from error
            raise
        self._prune()
        return final

    def checkpoints(self) -> list[Location]:
        """Complete checkpoints, oldest first."""
        found = [path for path in storage.list_folders(self.folder) if path.name.startswith("step-")]
        return [path for path in found if storage.exists(storage.open_folder(path) / STATE_FILE)]

    def find_last(self) -> Location | None:
        return max(self.checkpoints(), key=lambda path: path.name, default=None)

    def find_best(self) -> Location | None:
        """The one with the highest score, the later of two equals; without any score, the last."""
        scored = [(score, path.name, path) for path in self.checkpoints() if (score := self._score(path)) is not None]
        return max(scored)[2] if scored else self.find_last()

    def _score(self, checkpoint: Location) -> float | None:
        return load_metrics(checkpoint).get(self._score_key)

    def _prune(self) -> None:
        kept = {self.find_last(), self.find_best()}
        for path in self.checkpoints():
            if path not in kept:
                storage.remove_folder(path)
        storage.clear_partials(self.folder)

    def _full(self, reason: str) -> InputError:
        last = self.find_last()
        intact = f"{last} is intact and the same command goes on from it" if last else "there is none yet"
        return InputError(
            f"the disk of {self.folder} is full: {reason}; free some space or move runs_dir. "
            f"As for earlier checkpoints: {intact}."
        )


def load_cursor(folder: Location) -> Cursor:
    try:
        return Cursor(**_load_state(folder)["cursor"])
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder} is not a complete training checkpoint ({error}); use an earlier one.") from error


def load_metrics(folder: Location) -> dict[str, Any]:
    """What was reported with the checkpoint."""
    return _load_state(folder).get("metrics", {})


def load_parameters(folder: Location) -> dict[str, Tensor]:
    return load_file(storage.fetch_folder(folder) / PARAMETERS_FILE)


def load_moments(folder: Location) -> dict[str, Tensor]:
    return load_file(storage.fetch_folder(folder) / MOMENTS_FILE)


def _load_state(folder: Location) -> dict[str, Any]:
    try:
        return json.loads(storage.read_bytes(storage.open_folder(folder) / STATE_FILE))
    except (FileNotFoundError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{folder} is not a complete training checkpoint ({error}); use an earlier one.") from error


def _check_size(folder: Path, parameters: dict[str, Tensor]) -> None:
    """That nothing but the trained part is in it."""
    size = sum(path.stat().st_size for path in folder.iterdir())
    allowed = count_bytes(sum(value.numel() for value in parameters.values()))
    if size > allowed:
        raise RuntimeError(f"the checkpoint has {size} bytes where the trained parameters account for {allowed}")
