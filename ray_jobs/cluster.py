"""Start or join Ray. On a cluster, and inside `ray job submit`, RAY_ADDRESS names it; otherwise one is started here."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ray
import ray.data  # sets its own log level when imported: before we set ours
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import get_or_create_autoscaling_coordinator
from ray.data._internal.execution.node_trackers import get_or_create_actor_location_tracker
from ray.data._internal.stats import get_or_create_stats_actor
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from data_pipeline.locations import Location, filesystem_of
from ray_jobs.config import RayOptions
from ray_jobs.worker_output import relay_worker_output

MIN_LOGICAL_CPUS = 8
JOB_CONFIG_ENV = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # how `ray job submit` hands its runtime environment to the driver
PASSED_ON = (
    "HF_HUB_OFFLINE",
    "HF_HOME",
    "DS_ACCELERATOR",
    "TOOLMM_IMAGEBIND_CHECKPOINT",
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "AWS_ENDPOINT_URL",  # where buckets are; the keys to them are for each machine to have
    "AWS_ENDPOINT_URL_S3",
    "AWS_DEFAULT_REGION",
)


def thread_env(cpus: float) -> dict[str, str]:
    """Environment in which a process computes with as many threads as the CPUs that it is given, one at least."""
    return {"OMP_NUM_THREADS": str(max(1, int(cpus)))}


def worker_env() -> dict[str, str]:
    """Environment of every worker: one thread, unless it asks for more CPUs, and this process's switches.

    The config says how many threads compute, whatever OMP_NUM_THREADS is in the user's own environment: that is often
    set for other programs, and Ray would take its one thread for all workers.
    """
    quiet = {
        "TQDM_DISABLE": "1",  # bars of many workers at once are noise
        "PYTHONWARNINGS": "ignore::FutureWarning,ignore::DeprecationWarning",  # of libraries about themselves
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",  # its threads heed no OMP_NUM_THREADS
    }
    return thread_env(1) | quiet | {name: os.environ[name] for name in PASSED_ON if name in os.environ}


def tagged(node_resource: str | None, amount: float) -> dict[str, float]:
    """So much of a custom resource, by which nodes of one kind are told from others; nothing without one.

    Args:
        node_resource: its name: nodes that have it are those meant for the work.
        amount: as many as GPUs, so that a node that offers one for each of its GPUs is filled alike; 1 without GPUs.
    """
    return {} if node_resource is None else {node_resource: amount or 1}


def connect(options: RayOptions) -> None:
    """Join the cluster that RAY_ADDRESS names, or start a local Ray with more logical CPUs than cores.

    Train workers, data tasks and a sweep's drivers each claim logical CPUs; with no more of them than cores, on a small
    machine, they would wait for one another for ever.
    """
    if ray.is_initialized():
        return
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it warns that its bars are off
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    if os.environ.get("RAY_ADDRESS"):
        # Ray refuses a variable that the submission sets as well: the submission's value stands.
        submitted = job_runtime_env().get("env_vars", {})
        env_vars = {name: value for name, value in worker_env().items() if name not in submitted}
        ray.init(logging_level=logging.ERROR, runtime_env={"env_vars": env_vars})
        relay_worker_output()
        _keep_helpers_here()
        return
    num_cpus = options.num_cpus or max(MIN_LOGICAL_CPUS, os.cpu_count() or 1)
    # The dashboard stays on: Train asks its state API, and floods the log without it.
    ray.init(
        address="local",  # else a cluster that died and left its file behind would be looked for
        num_cpus=num_cpus,
        include_dashboard=True,
        logging_level=logging.ERROR,
        runtime_env={"env_vars": worker_env()},
    )
    relay_worker_output()


def ask_nodes(
    nodes: Iterable[Mapping[str, Any]], task: Any, *arguments: Any, patience_s: float
) -> tuple[dict[str, Any], dict[str, str]]:
    """Run a task on each of some nodes, whatever else runs there.

    Args:
        nodes: as `ray.nodes()` describes them.
        task: a remote function without CPUs.
        *arguments: of the task, the same everywhere.
        patience_s: for all to answer: a node that starts its first worker imports for a while.

    Returns:
        node id -> result, and node id -> why there is none.
    """
    tasks = {}
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        tasks[task.options(scheduling_strategy=there).remote(*arguments)] = node["NodeID"]
    done, silent = ray.wait(list(tasks), num_returns=len(tasks), timeout=patience_s) if tasks else ([], [])
    found, missing = {}, {tasks[each]: f"no answer within {patience_s:g} s" for each in silent}
    for each in silent:
        ray.cancel(each, force=True)
    for each in done:
        try:
            found[tasks[each]] = ray.get(each)
        except RayError as error:  # the node is gone, or its installation is broken
            missing[tasks[each]] = (str(error).strip().splitlines() or [repr(error)])[-1]
    return found, missing


def _keep_helpers_here() -> None:
    """Start Ray Data's helpers on this node, the driver's; where they are already, nothing happens.

    They outlive every job, and stay on the node of the process that needs them first. That would be a training worker:
    its node, GPUs and all, would never be idle again, and the autoscaler would never give it back.
    """
    get_or_create_stats_actor()
    get_or_create_autoscaling_coordinator()
    get_or_create_actor_location_tracker()


def ray_storage(run_dir: Location) -> dict[str, Any]:
    """Where Ray Train and Tune keep what they know of a run, as arguments of their `RunConfig`."""
    folder = run_dir / "ray"
    if isinstance(folder, Path):
        return {"storage_path": str(folder)}
    filesystem, name = filesystem_of(folder)
    return {"storage_path": name, "storage_filesystem": filesystem}


def job_runtime_env() -> dict[str, Any]:
    """The runtime environment that `ray job submit` gave this process; empty outside a submitted job."""
    return json.loads(os.environ.get(JOB_CONFIG_ENV, "{}")).get("runtime_env") or {}
