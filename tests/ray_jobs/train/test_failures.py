"""What a failure is called, wherever Ray has put what is known of it."""

from __future__ import annotations

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, OutOfMemoryError, RayActorError, RayTaskError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from ray_jobs.train.failures import describe_failure, is_aftermath

KILLED = OutOfMemoryError(
    "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 10.0.0.7, ID: 5e) was full"
)
UNWELL = "A worker health check failed."
DIED = "The actor died unexpectedly before finishing this task.\n\tclass_name: RayTrainWorker\n\tip: 10.0.0.7\n"
ALONE = WorkerHealthCheckFailedError(UNWELL, RayActorError(error_msg=DIED + "its worker process has died."))
WITH_ITS_NODE = WorkerHealthCheckFailedError(UNWELL, RayActorError(error_msg=DIED + "because its node has died."))
UNREACHED = WorkerHealthCheckFailedError(UNWELL, ActorUnavailableError("unavailable", b"\0" * 16))
LOST_PEER = RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:538] Connection closed by peer [::1]:7")
WITHOUT_DATA = RuntimeError("no data has come for 300 s: the process that makes it is gone.")


def test_a_death_for_want_of_memory_is_found_wherever_ray_puts_it() -> None:
    unwell = WorkerHealthCheckFailedError(UNWELL, KILLED)
    in_group = [WorkerGroupError("m", {0: RuntimeError("peer gone"), 1: killed}) for killed in (KILLED, unwell)]
    for error in (KILLED, ControllerError(KILLED), *in_group):
        assert (
            describe_failure(error) == "node 10.0.0.7 ran out of memory and Ray killed processes of the training there"
        )


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (ActorDiedError(), "Ray Train's controller died"),
        (WorkerGroupError("m", {0: LOST_PEER, 1: WITH_ITS_NODE}), "worker 1 died with its node 10.0.0.7"),
        (WorkerGroupError("m", {0: UNREACHED, 3: ALONE}), "worker 3 died on node 10.0.0.7"),
        (WorkerGroupError("m", {0: LOST_PEER, 2: UNREACHED}), "workers lost a process that they need"),
        (WorkerGroupError("m", {0: LOST_PEER, 1: WITHOUT_DATA}), "workers lost a process that they need"),
        (WorkerGroupError("m", {0: LOST_PEER, 1: ZeroDivisionError("a bug")}), None),
        (RayTaskError("run", "Traceback", ActorDiedError(), "ray::run", 1, "a").as_instanceof_cause(), None),
    ],
)
def test_what_is_gone_is_named_and_an_error_of_our_own_is_not(error: Exception, what: str | None) -> None:
    assert describe_failure(error) == what


def test_an_aftermath_names_nobody_who_is_gone() -> None:
    met_by_code = ActorDiedError()  # an actor that serves a worker, not the worker
    assert is_aftermath(WorkerGroupError("m", {0: LOST_PEER, 1: UNREACHED, 2: met_by_code}))
    for known in (ALONE, WITH_ITS_NODE, RuntimeError("CUDA out of memory")):
        assert not is_aftermath(WorkerGroupError("m", {0: LOST_PEER, 1: known}))
    assert not is_aftermath(ControllerError(ActorDiedError()))
