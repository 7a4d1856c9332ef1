"""Ray Train's trainer, but for what it does after a failure, where its own controller dies, and on Ctrl-C."""

from __future__ import annotations

import contextlib
import itertools
import re
import signal
import sys
import time
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError
from ray.train import ControllerError, Result
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.execution.callback import RayTrainCallback
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2.api.exceptions import TrainingFailedError

from ray_jobs.faults import CARRIED_AS, find_input_error, iterate_carried

WAIT_S = 10.0  # before another controller is started, times those lost: Ray would kill it as well on a node still full
LOW_ON_MEMORY = "running low on memory"  # what Ray says of processes that it killed for that, in several exceptions


def describe_death(error: BaseException) -> str | None:
    """What Ray has killed for want of memory, or that Train's controller died; a clause, None if neither."""
    for carried in iterate_carried(error, CARRIED_AS):
        if LOW_ON_MEMORY in str(carried):
            node = re.search(r"\(IP: ([^,)\s]+)", str(carried))
            where = f"node {node[1]}" if node else "a node"
            return f"{where} ran out of memory and Ray killed processes of the training there"
    return "Ray Train's controller died" if has_lost_controller(error) else None


def has_lost_controller(error: BaseException) -> bool:
    """Whether Train's controller died, or a process that it needs; what one of them raised is a RayTaskError."""
    if isinstance(error, ControllerError):
        error = error.controller_failure
    return isinstance(error, OutOfMemoryError | RayActorError) and not isinstance(error, RayTaskError)


class RetryWhatMayPass(DefaultFailurePolicy):
    """Ray Train's own policy, but for faults of the input: they would be met again, step for step."""

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        if find_input_error(training_failed_error) is not None:
            return FailureDecision.RAISE
        return super().make_decision(training_failed_error)


class Trainer(TorchTrainer):
    """Ray Train's trainer under that policy, for which it has no setting.

    Ctrl-C stops the workers and raises KeyboardInterrupt, as in any program; Ray's own handler exits with 0, as if the
    training were complete. Where a node runs out of memory Ray may kill the controller: another one takes its place, as
    often as a worker may fail, and its workers go on from the last checkpoint.
    """

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        """Without the process that hands out Ray Train's data sets: workers read their plan's shards themselves."""
        return [each for each in super()._create_default_callbacks() if not isinstance(each, DatasetsCallback)]

    def _initialize_and_run_controller(self, **controller: Any) -> Result:
        assert self.run_config.failure_config is not None
        controller["failure_policy"] = RetryWhatMayPass(self.run_config.failure_config)
        max_lost = self.run_config.failure_config.max_failures
        before = signal.getsignal(signal.SIGINT)
        try:
            for n_lost in itertools.count() if max_lost == -1 else range(max_lost):
                try:
                    result = super()._initialize_and_run_controller(**controller)
                    if result.error is None or not has_lost_controller(result.error):
                        return result
                    death = describe_death(result.error)
                except (OutOfMemoryError, RayActorError) as error:
                    if not has_lost_controller(error):
                        raise
                    death = describe_death(error)
                print(f"{death}; training goes on from the last checkpoint", file=sys.stderr)
                time.sleep(WAIT_S * (n_lost + 1))
            return super()._initialize_and_run_controller(**controller)
        finally:
            if signal.getsignal(signal.SIGINT) is not before:  # registered below, which only the main thread can do
                signal.signal(signal.SIGINT, before)

    def _register_sigint_handler(self, controller: Any) -> None:
        def stop(_signal: int, _frame: Any) -> None:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            print("stopping the workers; Ctrl-C again ends at once", file=sys.stderr, flush=True)
            with contextlib.suppress(RayActorError):  # it ends with its workers
                ray.get(controller.abort.remote())
            raise KeyboardInterrupt

        signal.signal(signal.SIGINT, stop)
