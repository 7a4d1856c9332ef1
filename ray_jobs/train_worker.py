"""What Ray Train starts on each worker. It stands apart from the loop so that Train's controller imports no torch."""

from __future__ import annotations

from typing import Any

import ray


def train_loop_per_worker(config: dict[str, Any]) -> None:
    """Run the loop of the `TrainJob` that `config["job"]` refers to."""
    from ray_jobs.train_loop import run_training

    run_training(ray.get(config["job"]))
