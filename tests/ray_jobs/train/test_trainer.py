"""Which failures Ray Train tries again."""

from __future__ import annotations

from ray.exceptions import ActorDiedError
from ray.train import FailureConfig, WorkerGroupError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
from ray.train.v2._internal.execution.failure_handling import FailureDecision

from data_pipeline.errors import InputError
from ray_jobs.train.trainer import RetryWhatMayPass


def test_what_died_is_started_again_and_what_would_fail_again_is_not() -> None:
    policy = RetryWhatMayPass(FailureConfig(max_failures=2))
    diverged = UserExceptionWithTraceback(InputError("the loss of step 3 is nan"), "Traceback")
    for failures in ({0: InputError("x")}, {0: ConnectionError("peer gone"), 1: diverged}):
        assert policy.make_decision(WorkerGroupError("m", failures)) is FailureDecision.RAISE
    died = WorkerGroupError("m", {0: ActorDiedError(), 1: RuntimeError("peer gone")})
    decisions = [policy.make_decision(died) for _ in range(3)]
    assert decisions == [FailureDecision.RETRY, FailureDecision.RETRY, FailureDecision.RAISE]
