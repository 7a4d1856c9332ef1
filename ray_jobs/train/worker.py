"""What Ray Train starts on each worker. It stands apart from the loop so that Train's controller imports no torch."""

from __future__ import annotations

import gc
import logging
from typing import Any

import ray
from ray.train.v2._internal import util as train_util

from ray_jobs.faults import describe_mendable
from ray_jobs.train.failures import is_lost_peer


def train_loop_per_worker(config: dict[str, Any]) -> None:
    """Run the loop of the `TrainJob` that `config["job"]` refers to."""
    gc.disable()  # what is imported stays: looking through it for garbage takes a second of five
    from ray_jobs.train.loop import run_training

    gc.freeze()
    gc.enable()
    try:
        run_training(ray.get(config["job"]))
    except Exception as error:
        if describe_mendable(error) is not None or is_lost_peer(error):
            # the driver says it in one sentence, which Train's traceback of it would bury
            logging.getLogger(train_util.__name__).setLevel(logging.CRITICAL)
        raise
