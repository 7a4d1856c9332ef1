"""Actors that decode: their threads, and the order of what they give."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from ray_jobs.config import EvaluateOptions
from ray_jobs.evaluate.actors import decode_on_actors

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


class ThreadCounter:
    """Says with how many threads it would decode."""

    def __init__(self, job: Any) -> None:
        self._job = job

    def __call__(self, batch: pa.Table) -> pa.Table:
        import torch

        threads = [torch.get_num_threads()] * batch.num_rows
        return pa.table({"position": batch["position"], "threads": threads, "job": [self._job] * batch.num_rows})


@pytest.mark.parametrize("threads", [1, 2])
def test_an_actor_has_the_threads_of_the_config_whatever_the_environment_says(threads: int) -> None:
    """The tests' Ray runs under OMP_NUM_THREADS=1, as the Makefile's does."""
    table = pa.table({"position": [3, 1, 0, 2]})
    options = EvaluateOptions(batch_size=2, threads_per_actor=threads)
    rows = decode_on_actors(ThreadCounter, "job", table, options, "rows")
    assert rows == [{"position": number, "threads": threads, "job": "job"} for number in range(4)]
