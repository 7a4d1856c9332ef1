"""How Ray Data runs here: in rounds with rests between them, and within what a dataset may take."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import ray
import ray.data
from ray.data._internal.execution.execution_callback import ExecutionCallback

from data_pipeline.batches.blocks import ROUND_S, keep_order

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

N_BLOCKS = 12


class _Rounds(ExecutionCallback):
    """Counts the rounds of a dataset's scheduling loop, and keeps what it may take."""

    count = 0
    cpus = 0.0

    def on_execution_step(self, executor: Any) -> None:
        _Rounds.count += 1
        _Rounds.cpus = executor._options.resource_limits.cpu


def _enlarge(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"data": np.zeros((len(batch["id"]), 2**18), dtype=np.uint8)}


def test_a_stream_that_waits_for_its_reader_rests() -> None:
    """A reader slower than the tasks, and no room for what they made: Ray's loop would go round thousands of times."""
    dataset = ray.data.range(N_BLOCKS, override_num_blocks=N_BLOCKS)
    keep_order(dataset.context, cpus=2)
    limits = dataset.context.execution_options.resource_limits
    dataset.context.execution_options.resource_limits = limits.copy(object_store_memory=2**19)
    dataset.context.custom_execution_callback_classes.append(_Rounds)
    blocks = iter(dataset.map_batches(_enlarge, num_cpus=1).iter_batches(batch_size=None, prefetch_batches=0))
    next(blocks)
    _Rounds.count, start = 0, time.monotonic()
    time.sleep(1.5)
    n_rounds, seconds = _Rounds.count, time.monotonic() - start
    assert _Rounds.cpus == 2
    assert n_rounds <= seconds / ROUND_S + 1
    assert sum(len(block["data"]) for block in blocks) == N_BLOCKS - 1
