"""Training checkpoints: the trained parameters, their Adam moments and the cursor. Frozen weights are never in them.

Nothing random is stored: data order and dropout are drawn from (seed, epoch, step), so a cursor is enough to go on with
the very next step.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from data_pipeline.errors import InputError

PARAMETERS_FILE = "trainables.safetensors"
MOMENTS_FILE = "optimizer.safetensors"
CURSOR_FILE = "cursor.json"
FP32_BYTES = 4
COPIES = 3  # a parameter and its two moments
HEADER_ALLOWANCE_BYTES = 1 << 20


@dataclass(frozen=True)
class Cursor:
    """Where training stands.

    Attributes:
        step: optimizer steps taken; the next step to take has this number.
        epoch: epochs completed.
        mlflow_run_id: the one run that the whole training logs to.
    """

    step: int
    epoch: int
    mlflow_run_id: str


def save_checkpoint(folder: Path, parameters: dict[str, Tensor], moments: dict[str, Tensor], cursor: Cursor) -> int:
    """Write a checkpoint and return its size in bytes.

    The cursor is written last and renamed into place: a folder without it is not a checkpoint.
    """
    save_file(parameters, folder / PARAMETERS_FILE)
    save_file(moments, folder / MOMENTS_FILE)
    temporary = folder / (CURSOR_FILE + ".partial")
    temporary.write_text(json.dumps(asdict(cursor)), encoding="utf-8")
    os.replace(temporary, folder / CURSOR_FILE)
    size = sum(path.stat().st_size for path in folder.iterdir())
    allowed = COPIES * FP32_BYTES * sum(value.numel() for value in parameters.values()) + HEADER_ALLOWANCE_BYTES
    if size > allowed:
        raise RuntimeError(f"the checkpoint has {size} bytes where the trained parameters account for {allowed}")
    return size


def load_cursor(folder: Path) -> Cursor:
    try:
        return Cursor(**json.loads((folder / CURSOR_FILE).read_text(encoding="utf-8")))
    except (FileNotFoundError, json.JSONDecodeError, TypeError) as error:
        raise InputError(f"{folder} is not a complete training checkpoint ({error}); use an earlier one.") from error


def load_parameters(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / PARAMETERS_FILE)


def load_moments(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / MOMENTS_FILE)
