"""Which failures of a worker are worth a restart: Ray Train by itself restarts after any of them."""

from __future__ import annotations

from typing import Any

from ray.train import Result
from ray.train.torch import TorchTrainer
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
    """Ray Train's trainer under that policy, for which it has no setting."""

    def _initialize_and_run_controller(self, **controller: Any) -> Result:
        assert self.run_config.failure_config is not None
        controller["failure_policy"] = RetryWhatMayPass(self.run_config.failure_config)
        return super()._initialize_and_run_controller(**controller)
