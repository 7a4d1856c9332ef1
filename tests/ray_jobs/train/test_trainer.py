"""Which failures Ray Train tries again."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayTaskError
from ray.train import ControllerError, FailureConfig, RunConfig, TrainingFailedError, WorkerGroupError
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError
from ray.train.v2._internal.execution.failure_handling import FailureDecision

from data_pipeline.errors import InputError
from ray_jobs.train.trainer import RetryWhatMayPass, Trainer, describe_death

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
    return Trainer(lambda: None, run_config=run_config)._initialize_and_run_controller()


def test_what_died_is_started_again_and_what_would_fail_again_is_not() -> None:
    policy = RetryWhatMayPass(FailureConfig(max_failures=2))
    diverged = UserExceptionWithTraceback(InputError("the loss of step 3 is nan"), "Traceback")
    for failures in ({0: InputError("x")}, {0: ConnectionError("peer gone"), 1: diverged}):
        assert policy.make_decision(WorkerGroupError("m", failures)) is FailureDecision.RAISE
    died = WorkerGroupError("m", {0: ActorDiedError(), 1: RuntimeError("peer gone")})
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
    assert describe_death(raised) is None


def test_a_death_for_want_of_memory_is_found_wherever_ray_puts_it() -> None:
    unwell = WorkerHealthCheckFailedError("A worker health check failed.", KILLED)
    in_group = [WorkerGroupError("m", {0: RuntimeError("peer gone"), 1: killed}) for killed in (KILLED, unwell)]
    for error in (KILLED, ControllerError(KILLED), *in_group):
        assert describe_death(error) == "node 10.0.0.7 ran out of memory and Ray killed processes of the training there"
    assert describe_death(ActorDiedError()) == "Ray Train's controller died"
    assert describe_death(WorkerGroupError("m", {0: ActorDiedError()})) is None
