"""Start or join Ray. On a cluster, and inside `ray job submit`, RAY_ADDRESS names it; otherwise one is started here."""

from __future__ import annotations

import logging
import os

import ray

from ray_jobs.config import RayOptions

MIN_LOGICAL_CPUS = 8


def worker_env() -> dict[str, str]:
    """Environment of every worker: one thread each (they are many on few cores), and this process's offline switches."""
    passed_on = ("HF_HUB_OFFLINE", "HF_HOME", "DS_ACCELERATOR", "TOOLMM_IMAGEBIND_CHECKPOINT", "MLFLOW_TRACKING_TOKEN")
    return {"OMP_NUM_THREADS": "1"} | {name: os.environ[name] for name in passed_on if name in os.environ}


def connect(options: RayOptions) -> None:
    """Join the cluster that RAY_ADDRESS names, or start a local Ray with more logical CPUs than cores.

    Train workers, data tasks and the sweep's drivers each claim logical CPUs; with as many as cores on a small machine they
    would wait for one another for ever.
    """
    if ray.is_initialized():
        return
    # `ray.init` turns token authentication on by itself, the `ray` command does not: a mix fails.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if os.environ.get("RAY_ADDRESS"):
        ray.init(logging_level=logging.WARNING)
        return
    num_cpus = options.num_cpus or max(MIN_LOGICAL_CPUS, os.cpu_count() or 1)
    # The dashboard stays on: Train asks its state API, and floods the log without it.
    ray.init(
        num_cpus=num_cpus,
        include_dashboard=True,
        logging_level=logging.WARNING,
        runtime_env={"env_vars": worker_env()},
    )
