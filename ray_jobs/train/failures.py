"""What has failed in a training, as a clause: of the line that says that it goes on, or of its last sentence."""

from __future__ import annotations

import re

from ray.exceptions import (
    ActorUnavailableError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from data_pipeline.batches.waiting import NO_DATA
from ray_jobs.faults import CARRIED_AS, iterate_carried

LOW_ON_MEMORY = "running low on memory"  # what Ray says of processes that it killed for that, in several exceptions
OUT_OF_MEMORY = "ran out of memory"  # what we say
NODE_DIED = "its node has died"  # Ray, of an actor
# a collective whose other end is gone, or a stream of data whose source is
LOST_PEER = ("gloo/transport", "ncclRemoteError", NO_DATA)


def describe_failure(error: BaseException) -> str | None:
    """Which process of a training, or which node, is gone, and why if Ray knows; None for an error that one raised."""
    for carried in iterate_carried(error, CARRIED_AS):
        if LOW_ON_MEMORY in str(carried):
            node = re.search(r"\(IP: ([^,)\s]+)", str(carried))
            where = f"node {node[1]}" if node else "a node"
            return f"{where} {OUT_OF_MEMORY} and Ray killed processes of the training there"
    if has_lost_controller(error):
        return "Ray Train's controller died"
    return _describe_workers(error.worker_failures) if isinstance(error, WorkerGroupError) else None


def has_lost_controller(error: BaseException) -> bool:
    """Whether Train's controller died, or a process that it needs; what one of them raised is a RayTaskError."""
    if isinstance(error, ControllerError):
        error = error.controller_failure
    return isinstance(error, OutOfMemoryError | RayActorError) and not isinstance(error, RayTaskError)


def is_aftermath(error: BaseException) -> bool:
    """Whether what workers raised says no more than that another process is gone, and not which one nor why.

    Ray knows of a node that died without a word some seconds later than those whose connections broke.
    """
    return isinstance(error, WorkerGroupError) and all(map(is_lost_peer, error.worker_failures.values()))


def is_lost_peer(failure: BaseException) -> bool:
    """Likewise of one worker: what its code met, or that it cannot be reached at the moment."""
    if isinstance(failure, WorkerHealthCheckFailedError):
        return isinstance(failure.health_check_failure, ActorUnavailableError)
    if isinstance(failure, RayActorError | NodeDiedError | ObjectLostError | WorkerCrashedError):
        return not isinstance(failure, RayTaskError)
    return isinstance(failure, RuntimeError) and any(sign in str(failure) for sign in LOST_PEER)


def _describe_workers(failures: dict[int, Exception]) -> str | None:
    """A death comes before what it brings about in other workers."""
    for rank, failure in sorted(failures.items()):
        if isinstance(failure, WorkerHealthCheckFailedError) and not is_lost_peer(failure):
            why = str(failure.health_check_failure)
            ip = re.search(r"\bip: (\S+)", why)
            where = f" {'with its' if NODE_DIED in why else 'on'} node {ip[1]}" if ip else ""
            return f"worker {rank} died{where}"
    return "workers lost a process that they need" if all(map(is_lost_peer, failures.values())) else None
