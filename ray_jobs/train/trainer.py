"""Ray Train's trainer, but for what it does after a failure and on Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
import sys
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.train import Result
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.execution.callback import RayTrainCallback
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2.api.exceptions import TrainingFailedError

from ray_jobs.faults import find_input_error


class RetryWhatMayPass(DefaultFailurePolicy):
    """Ray Train's own policy, but for faults of the input: they would be met again, step for step."""

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        if find_input_error(training_failed_error) is not None:
            return FailureDecision.RAISE
        return super().make_decision(training_failed_error)


class Trainer(TorchTrainer):
    """Ray Train's trainer under that policy, for which it has no setting.

    Ctrl-C stops the workers and raises KeyboardInterrupt, as in any program; Ray's own handler exits with 0, as if the
    training were complete.
    """

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        """Without the process that hands out Ray Train's data sets: workers read their plan's shards themselves."""
        return [each for each in super()._create_default_callbacks() if not isinstance(each, DatasetsCallback)]

    def _initialize_and_run_controller(self, **controller: Any) -> Result:
        assert self.run_config.failure_config is not None
        controller["failure_policy"] = RetryWhatMayPass(self.run_config.failure_config)
        before = signal.getsignal(signal.SIGINT)
        try:
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
