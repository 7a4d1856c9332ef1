"""What all uses of Ray Data in this room share: blocks in order, list columns from whole arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import ray.data


def keep_order(context: ray.data.DataContext) -> None:
    """Let Ray Data give blocks in the order in which they were asked for, not in which they became ready.

    Errors arrive as they were raised: its own wrapper loses the InputError inside on the way to the driver.

    Args:
        context: of a dataset; or the current one, which datasets copy when they are made.
    """
    context.execution_options.preserve_order = True
    context.raise_original_map_exception = True
    context.enable_progress_bars = False


def list_array(arrays: Sequence[np.ndarray], item_type: pa.DataType) -> pa.Array:
    """A list column made from whole arrays, without going through Python objects."""
    offsets = np.concatenate([[0], np.cumsum([len(array) for array in arrays])]).astype(np.int32)
    values = np.concatenate(arrays) if arrays else np.zeros(0)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, item_type))
