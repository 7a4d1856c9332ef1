"""Follows a sweep while it runs: keeps the trials' records, ends their MLflow runs, and prints how far it is."""

from __future__ import annotations

import time
from typing import Any

import ray.tune
from ray.tune.experiment import Trial

from data_pipeline.errors import InputError
from ray_jobs.config import RunSpec
from ray_jobs.tracking.runs import RunLogger, open_run
from ray_jobs.tune.driver import JOB_KEY, SweepRun
from ray_jobs.tune.trials import TrialRecord, find_best

PROGRESS_INTERVAL_S = 15.0
RUN_STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
TRIAL_TAG = "toolmm.trial"
END_TAG = "toolmm.trial_end"
STOPPED = "stopped by scheduler"


class SweepRecorder(ray.tune.Callback):
    """Ray Tune's callback.

    Args:
        spec: of the sweep.
        sweep: what its trials are given.
        records: by name, of trials from before a restart; those of this run are added.
        num_trials: of the whole sweep.
        concurrency: trials at a time.
    """

    def __init__(
        self, spec: RunSpec, sweep: SweepRun, records: dict[str, TrialRecord], num_trials: int, concurrency: int
    ) -> None:
        self._spec, self._sweep, self._records = spec, sweep, records
        self._num_trials, self._concurrency = num_trials, concurrency
        self._started_s: dict[str, float] = {}  # by name, of trials that run; less what earlier attempts took
        self._took_s: list[float] = []  # of the trials that ended in this run of the sweep
        self._said_s = time.monotonic()

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        record = self._record(trial)
        record.status, record.reason = "running", ""
        self._started_s[record.name] = time.monotonic() - record.seconds
        self._sweep.folders.save(record)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        if "epoch" not in result:
            return
        record = self._record(trial)
        record.add_epoch(result)
        record.seconds = time.monotonic() - self._started_s[record.name]
        is_named, record.job = bool(record.job), str(result[JOB_KEY]).removeprefix("train-")
        self._sweep.folders.save(record)
        if not is_named:
            self._update_run(record)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        record = self._record(trial)
        self._close(record)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Only a process that died comes here; what a training raises is in its folder (`run_trial`)."""
        record = self._record(trial)
        n_deaths = self._spec.train.max_failures + 1  # with -1 it would not have come here
        self._sweep.folders.note_failure(record.name, f"its process died {n_deaths} time(s)")
        self._close(record)

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        if time.monotonic() - self._said_s > PROGRESS_INTERVAL_S:
            self._say()

    def settle_runs(self, timeout_s: float = 60.0) -> None:
        """Give every ended trial's MLflow run its status again, and what its workers had logged and not delivered.

        That can be taken over once they are gone, some seconds after the scheduler's decision.
        """
        deadline = time.monotonic() + timeout_s
        for record in self._records.values():
            run_id = self._update_run(record) if record.status in RUN_STATUS else None
            while run_id and any(self._spec.spool_dir.glob(f"{run_id}.*")) and time.monotonic() < deadline:
                time.sleep(0.5)
                run_id = self._update_run(record)

    def _close(self, record: TrialRecord) -> None:
        if record.name in self._started_s:  # a trial may end before it has started
            record.seconds = time.monotonic() - self._started_s.pop(record.name)
        self._took_s.append(record.seconds)
        self._sweep.folders.close(record)
        self._update_run(record)
        score = "-" if record.best_score is None else f"{record.best_score:.4f}"
        print(
            f"trial {record.name} {record.status} epochs={record.epochs_run}/{record.planned_epochs} "
            f"best={score} {record.reason}".rstrip()
        )
        self._say()

    def _record(self, trial: Trial) -> TrialRecord:
        name = self._sweep.name(trial.config)
        if name not in self._records:
            parameters = dict(trial.config)
            epochs = parameters.get("train.epochs", self._spec.train.epochs)
            number = len(self._records)
            self._records[name] = TrialRecord(name, self._sweep.fingerprint, parameters, epochs, number)
        return self._records[name]

    def _say(self) -> None:
        self._said_s = time.monotonic()
        records = list(self._records.values())
        counts = {status: sum(record.status == status for record in records) for status in (*RUN_STATUS, "running")}
        n_done = sum(counts[status] for status in RUN_STATUS)
        best = find_best(records)
        shown = f"{best.best_score:.4f} ({best.name})" if best else "-"
        eta = "unknown"
        if self._took_s:
            mean_s = sum(self._took_s) / len(self._took_s)
            eta = f"{mean_s * (self._num_trials - n_done) / self._concurrency:.0f}s"
        print(
            f"sweep done={n_done}/{self._num_trials} running={counts['running']} stopped={counts['stopped']} "
            f"failed={counts['failed']} best={shown} eta={eta}",
            flush=True,
        )

    def _update_run(self, record: TrialRecord) -> str | None:
        """Name the trial's MLflow run, and end it where the trial has ended; the sweep goes on without the server.

        Returns:
            the run's id; None where there is none, or no server.
        """
        if not record.job:
            return None  # it failed before its first epoch was over: `launch` has ended the run, if there was one
        uri = self._spec.tracking_uri
        try:
            run_id = open_run(
                uri, self._spec.tracking.experiment, record.name, record.job, {}, self._sweep.parent_run_id
            )
        except InputError as error:
            print(f"trial {record.name}: its MLflow run is updated at the end of the sweep ({error})", flush=True)
            return None
        tags = {"mlflow.runName": record.name, TRIAL_TAG: record.name}
        if record.status in RUN_STATUS:
            tags[END_TAG] = STOPPED if record.status == "stopped" else record.reason or record.status
        tracker = RunLogger(uri, run_id, spool_dir=self._spec.spool_dir)
        tracker.log_tags(tags)
        if record.status in RUN_STATUS:
            tracker.finish(RUN_STATUS[record.status])
        else:
            tracker.close()
        return run_id
