"""Ray Train's trainer, but for what it does after a failure, where its own controller dies, and on Ctrl-C."""

from __future__ import annotations

import contextlib
import itertools
import logging
import signal
import sys
import time
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.train import ControllerError, FailureConfig, Result
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback, backend_setup
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.callback import ControllerCallback, RayTrainCallback
from ray.train.v2._internal.execution.context import TrainRunContext
from ray.train.v2._internal.execution.controller import controller as train_controller
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2._internal.execution.failure_handling.default import RETRYABLE_CONTROLLER_ERRORS
from ray.train.v2.api.exceptions import PreemptionError, TrainingFailedError

from ray_jobs.faults import describe_mendable
from ray_jobs.train.failures import describe_failure, has_lost_controller, is_aftermath
from ray_jobs.worker_output import tell_line

WAIT_S = 10.0  # before another controller is started, times those lost: Ray would kill it as well on a node still full
PATIENCE_S = 30.0  # until Ray knows which node died: it misses some of its answers first


class RetryWhatMayPass(DefaultFailurePolicy):
    """Ray Train's own policy, but for what a user has to mend, such as a full disk: it would be met again and again.

    What is tried again is told to the driver in a line. Where workers have lost another one, and it is not known how,
    the policy waits for the news: Train itself would count a node that the cluster has taken as a failure.

    Args:
        failure_config: how often.
        job: name of the Ray Train run.
        needs: what a worker takes, such as "1 CPU, 1 GPU".
    """

    def __init__(self, failure_config: FailureConfig, job: str, needs: str) -> None:
        super().__init__(failure_config)
        self._job, self._needs = job, needs
        self._waits_until: float | None = None

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        if describe_mendable(training_failed_error) is not None:
            return FailureDecision.RAISE
        if is_aftermath(training_failed_error) and not self._is_out_of_patience():
            return FailureDecision.NOOP
        self._waits_until = None
        n_before = self._worker_group_failures
        decision = super().make_decision(training_failed_error)
        if decision is FailureDecision.RETRY:
            tell_line(self._job, self._describe(training_failed_error, counts=self._worker_group_failures > n_before))
        return decision

    def _is_out_of_patience(self) -> bool:
        if self._waits_until is None:
            self._waits_until = time.monotonic() + PATIENCE_S
        return time.monotonic() >= self._waits_until

    def _describe(self, error: TrainingFailedError, counts: bool) -> str:
        failure = error.controller_failure if isinstance(error, ControllerError) else None
        if isinstance(failure, WorkerGroupStartupTimeoutError):
            return f"waiting for nodes with room for {failure.num_workers} worker(s), each with {self._needs}"
        what = "a node was taken" if isinstance(error, PreemptionError) else describe_failure(error)
        what = what or "a worker failed"  # Train has shown its traceback
        max_failures = self.failure_config.max_failures
        budget = f" (failure {self._worker_group_failures} of {max_failures} allowed)" if max_failures != -1 else ""
        return f"{what}; training goes on from the last checkpoint{budget if counts else ''}"


class ShortLog(ControllerCallback):
    """Takes tracebacks of what is tried again, and of processes that are gone, out of the log of Train's controller.

    The policy, or the driver at the end, says it in a sentence.
    """

    def after_controller_start(self, train_run_context: TrainRunContext) -> None:
        for module in (train_controller, backend_setup):
            logging.getLogger(module.__name__).addFilter(_is_worth_a_traceback)


def _is_worth_a_traceback(record: logging.LogRecord) -> bool:
    return record.exc_info is None or not isinstance(record.exc_info[1], (*RETRYABLE_CONTROLLER_ERRORS, RayActorError))


class Trainer(TorchTrainer):
    """Ray Train's trainer under that policy, for which it has no setting.

    Ctrl-C stops the workers and raises KeyboardInterrupt, as in any program; Ray's own handler exits with 0, as if the
    training were complete. Where a node runs out of memory Ray may kill the controller: another one takes its place, as
    often as a worker may fail, and its workers go on from the last checkpoint.
    """

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        """Without the process that hands out Ray Train's data sets: workers read their plan's shards themselves."""
        ours = [each for each in super()._create_default_callbacks() if not isinstance(each, DatasetsCallback)]
        return [*ours, ShortLog()]

    def _initialize_and_run_controller(self, **controller: Any) -> Result:
        assert self.run_config.failure_config is not None
        resources = self.scaling_config.resources_per_worker
        assert isinstance(resources, dict)
        needs = ", ".join(f"{amount:g} {name}" for name, amount in resources.items())
        controller["failure_policy"] = RetryWhatMayPass(
            self.run_config.failure_config, self.run_config.name or "train", needs
        )
        max_lost = self.run_config.failure_config.max_failures
        before = signal.getsignal(signal.SIGINT)
        try:
            for n_lost in itertools.count() if max_lost == -1 else range(max_lost):
                try:
                    result = super()._initialize_and_run_controller(**controller)
                    if result.error is None or not has_lost_controller(result.error):
                        return result
                    death = describe_failure(result.error)
                except (OutOfMemoryError, RayActorError) as error:
                    if not has_lost_controller(error):
                        raise
                    death = describe_failure(error)
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
