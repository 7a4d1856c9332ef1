"""Which failures Ray Train tries again, and what is said of them."""

from __future__ import annotations

import errno
import json
import logging
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayTaskError
from ray.train import (
    ControllerError,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    WorkerGroupError,
)
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import backend_setup
from ray.train.v2._internal.exceptions import (
    UserExceptionWithTraceback,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)
from ray.train.v2._internal.execution.controller import controller as train_controller
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2.api.exceptions import PreemptionError
from ray.train.v2.api.preemption import PreemptionInfo

from data_pipeline.errors import InputError
from ray_jobs.train.trainer import RetryWhatMayPass, ShortLog, Trainer
from ray_jobs.worker_output import MARK

KILLED = OutOfMemoryError(
    "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 10.0.0.7, ID: 5e) was full"
)


class LostController:
    """Ray Train's part: a controller that dies so many times before it comes to an end, as often as it is started."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *deaths: Exception) -> None:
        self.n_started = 0
        self._deaths = list(deaths)
        monkeypatch.setattr("ray_jobs.train.trainer.WAIT_S", 0.0)
        monkeypatch.setattr(TorchTrainer, "_initialize_and_run_controller", self.run)

    def run(self, **controller: Any) -> SimpleNamespace:
        assert isinstance(controller["failure_policy"], RetryWhatMayPass)
        self.n_started += 1
        death = self._deaths.pop(0) if self._deaths else None
        if death is None or isinstance(death, TrainingFailedError):
            return SimpleNamespace(error=death)
        raise death


def start(max_failures: int) -> Any:
    run_config = RunConfig(name="x", failure_config=FailureConfig(max_failures=max_failures))
    scaling = ScalingConfig(resources_per_worker={"CPU": 1})
    return Trainer(lambda: None, scaling_config=scaling, run_config=run_config)._initialize_and_run_controller()


def test_what_died_is_started_again_and_what_would_fail_again_is_not() -> None:
    policy = RetryWhatMayPass(FailureConfig(max_failures=2), "train-1", "1 CPU")
    diverged = UserExceptionWithTraceback(InputError("the loss of step 3 is nan"), "Traceback")
    full = OSError(errno.ENOSPC, "No space left on device", "/cache/toolmm/step-00000004")  # as a worker fetches it
    to_mend: list[dict[int, Exception]] = [
        {0: InputError("x")},
        {0: ConnectionError("peer gone"), 1: diverged},
        {0: full},
        {0: ConnectionError("peer gone"), 1: UserExceptionWithTraceback(full, "Traceback")},
        {0: UserExceptionWithTraceback(OSError(errno.EDQUOT, "Disk quota exceeded"), "Traceback")},
    ]
    for failures in to_mend:
        assert policy.make_decision(WorkerGroupError("m", failures)) is FailureDecision.RAISE
    died = WorkerGroupError("m", {0: WorkerHealthCheckFailedError("unwell", ActorDiedError())})
    decisions = [policy.make_decision(died) for _ in range(3)]
    assert decisions == [FailureDecision.RETRY, FailureDecision.RETRY, FailureDecision.RAISE]


@pytest.mark.parametrize("max_failures", [3, -1])
def test_another_controller_takes_the_place_of_one_that_died(
    max_failures: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = LostController(monkeypatch, KILLED, ControllerError(KILLED), ActorDiedError())
    assert start(max_failures).error is None
    assert lost.n_started == 4
    full = "node 10.0.0.7 ran out of memory and Ray killed processes of the training there"
    assert capsys.readouterr().err.splitlines() == [
        f"{death}; training goes on from the last checkpoint" for death in (full, full, "Ray Train's controller died")
    ]


def test_controllers_are_started_as_often_as_workers_may_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = LostController(monkeypatch, KILLED, KILLED, KILLED)
    with pytest.raises(OutOfMemoryError):
        start(1)
    assert lost.n_started == 2


def test_what_a_controller_raises_is_no_death_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    raised = RayTaskError("run", "Traceback", ActorDiedError(), "ray::run", 1, "10.0.0.7").as_instanceof_cause()
    assert isinstance(raised, ActorDiedError)
    lost = LostController(monkeypatch, raised)
    with pytest.raises(ActorDiedError):
        start(2)
    assert lost.n_started == 1
    diverged = WorkerGroupError("m", {0: InputError("the loss is nan")})
    assert start(2).error is None
    lost = LostController(monkeypatch, diverged)
    assert start(2).error is diverged
    assert lost.n_started == 1


def test_what_is_tried_again_is_told_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    policy = RetryWhatMayPass(FailureConfig(max_failures=2), "train-1", "1 CPU, 1 GPU")
    taken = PreemptionError(PreemptionInfo(deadline_ms=1, preempted_node_to_ranks={"5e": [0]}))
    no_room = ControllerError(WorkerGroupStartupTimeoutError(4))
    bug = WorkerGroupError("m", {0: ZeroDivisionError("a bug")})
    died = WorkerGroupError("m", {1: WorkerHealthCheckFailedError("unwell", ActorDiedError())})
    for error in (died, taken, no_room, bug, bug):
        policy.make_decision(error)
    on = "training goes on from the last checkpoint"
    assert [json.loads(line.removeprefix(MARK)) for line in capsys.readouterr().out.splitlines()] == [
        ["train-1", "line", told]
        for told in (
            f"worker 1 died; {on} (failure 1 of 2 allowed)",
            f"a node was taken; {on}",
            "waiting for nodes with room for 4 worker(s), each with 1 CPU, 1 GPU",
            f"a worker failed; {on} (failure 2 of 2 allowed)",
        )
    ]


def test_the_end_of_a_worker_that_others_have_lost_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a node that was taken, of which Ray knows late, counts as taken."""
    policy = RetryWhatMayPass(FailureConfig(max_failures=0), "train-1", "1 CPU")
    lost: dict[int, Exception] = {0: RuntimeError("gloo/transport/tcp/pair.cc: Connection closed by peer")}
    node_was_taken = ActorDiedError()
    node_was_taken._preempted = True
    known: dict[int, Exception] = {**lost, 1: WorkerHealthCheckFailedError("unwell", node_was_taken)}
    decisions = [policy.make_decision(WorkerGroupError("m", failures)) for failures in (lost, lost, known)]
    assert decisions == [FailureDecision.NOOP, FailureDecision.NOOP, FailureDecision.RETRY]
    monkeypatch.setattr("ray_jobs.train.trainer.PATIENCE_S", 0.0)
    assert policy.make_decision(WorkerGroupError("m", lost)) is FailureDecision.RAISE, "nobody's end has become known"


def test_waiting_for_room_leaves_no_traceback(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs = [logging.getLogger(module.__name__) for module in (train_controller, backend_setup)]
    for log in logs:
        monkeypatch.setattr(log, "filters", [])
    ShortLog().after_controller_start(None)  # pyright: ignore
    for log, error in zip(
        logs * 2, (WorkerGroupStartupTimeoutError(2), ActorDiedError(), ValueError("a bug")), strict=False
    ):
        log.error("Error in control loop iteration", exc_info=error)
    [record] = caplog.records
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ValueError)
