"""What all uses of Ray Data in this room share: blocks in order, list columns from whole arrays."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import ray.data
from ray.data._internal.execution.execution_callback import ExecutionCallback

ROUND_S = 0.02


class Pace(ExecutionCallback):
    """A round of Ray Data's scheduling at most every `ROUND_S` seconds.

    Where a stream's consumer is slower than its tasks, Ray 2.60 goes round without a pause, and so holds the
    interpreter's lock three quarters of the time in the process that trains.
    """

    def __init__(self) -> None:
        self._begun_s = 0.0

    def on_execution_step(self, executor: object) -> None:
        time.sleep(max(0.0, self._begun_s + ROUND_S - time.monotonic()))
        self._begun_s = time.monotonic()


def keep_order(context: ray.data.DataContext, cpus: int | None = None) -> None:
    """Let Ray Data give blocks in the order in which they were asked for, not in which they became ready.

    Errors arrive as they were raised: its own wrapper loses the InputError inside on the way to the driver.

    Args:
        context: of a dataset; or the current one, which datasets copy when they are made.
        cpus: what the dataset takes at most. Of those that run side by side without a limit one may ask for all that is
            free, and the others get nothing until that request ends after three minutes.
    """
    context.execution_options.preserve_order = True
    context.raise_original_map_exception = True
    context.enable_progress_bars = False
    if Pace not in context.custom_execution_callback_classes:
        context.custom_execution_callback_classes.append(Pace)
    if cpus is not None:
        context.execution_options.resource_limits = ray.data.ExecutionResources.for_limits(cpu=cpus)


def list_array(arrays: Sequence[np.ndarray], item_type: pa.DataType) -> pa.Array:
    """A list column made from whole arrays, without going through Python objects."""
    offsets = np.concatenate([[0], np.cumsum([len(array) for array in arrays])]).astype(np.int32)
    values = np.concatenate(arrays) if arrays else np.zeros(0)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, item_type))
