"""MLflow runs. Train V2 takes no Tune callbacks, so rank 0 logs by itself.

Training never waits for the tracking server and never fails with it: what is logged goes through an outbox (see
`ray_jobs.tracking.outbox`), is sent by a thread of its own, and is kept until the server has taken it.
"""

from __future__ import annotations

import atexit
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow.entities import Dataset as MlflowDataset
from mlflow.entities import DatasetInput, InputTag, LifecycleStage, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.tracking import MlflowClient

from data_pipeline.locations import Location
from ray_jobs.places import hide_secrets
from ray_jobs.tracking.client import TRANSIENT, TRANSIENT_CODES, build_client, explained, patiently, sqlite_file
from ray_jobs.tracking.outbox import Entry, Outbox

FINGERPRINT_TAG = "toolmm.fingerprint"
OPENED_TAG = "toolmm.opened_ms"
PARENT_TAG = "mlflow.parentRunId"
MAX_PARAMS_PER_CALL = 100
MAX_METRICS_PER_CALL = 1000
MAX_PARAM_CHARS = 6000
MAX_DIGEST_CHARS = 36
CLOSE_LIMIT_S = 30.0  # for what still waits when a logger is closed
SYSTEM_METRICS_INTERVAL_S = 10.0
log = logging.getLogger(__name__)


def open_run(
    uri: str,
    experiment: str,
    run_name: str,
    fingerprint: str,
    params: Mapping[str, Any],
    parent_run_id: str | None = None,
) -> str:
    """Find the run of this fingerprint, or create it, and return its id: a resumed job goes on in the same run.

    Args:
        uri: of the tracking server or database.
        experiment: name; made where it is missing.
        run_name: shown to people.
        fingerprint: names the job.
        params: nested mapping, logged flat.
        parent_run_id: the sweep that the run is a trial of; the same job outside that sweep has a run of its own.

    Raises:
        InputError: nothing answers at `uri`, or what does refuses.
    """
    client = build_client(uri)

    def open_once() -> str:
        experiment_id = _experiment_id(client, experiment, uri)
        run = _find_run(client, experiment_id, fingerprint, parent_run_id)
        opened = str(_now_ms())
        if run is None:
            tags = {FINGERPRINT_TAG: fingerprint, OPENED_TAG: opened}
            if parent_run_id is not None:
                tags[PARENT_TAG] = parent_run_id
            run = client.create_run(experiment_id, tags=tags, run_name=run_name)
        else:
            client.set_tag(run.info.run_id, OPENED_TAG, opened)
            client.update_run(run.info.run_id, status="RUNNING")
        if not run.data.params:
            flat = [Param(key, str(value)[:MAX_PARAM_CHARS]) for key, value in _flatten(params)]
            for start in range(0, len(flat), MAX_PARAMS_PER_CALL):
                client.log_batch(run.info.run_id, params=flat[start : start + MAX_PARAMS_PER_CALL])
        return run.info.run_id

    with explained(uri):
        return patiently(open_once, uri)


class RunLogger:
    """Logs to an existing run; made on rank 0 and in the driver.

    Metrics, tags, the data set and the final status are queued and return at once; artifacts are uploaded before the
    call returns. What the server has not taken by the time of `close`, or when the process is killed, stays in
    `spool_dir` and is sent by the next logger of the same run; it is dropped only where the run has been deleted.

    Args:
        uri: of the tracking server or database.
        run_id: of `open_run`.
        system_metrics: also log CPU, memory, disk, network and GPU figures, at the training step that they fall in.
        spool_dir: folder that outlives the process, shared by the machines that may continue the run; None keeps what
            waits in memory alone.
    """

    def __init__(self, uri: str, run_id: str, system_metrics: bool = False, spool_dir: Path | None = None) -> None:
        self._client = build_client(uri)
        self._uri, self._run_id = uri, run_id
        self._stored_step: dict[str, int] | None = None  # by key, on the server; None until it has been asked
        self._opened_ms = 0
        self._last_step: dict[str, int] = {}  # by key, of what has been queued
        self._train_step = -1
        self._is_open = True
        self._is_told_gone = False
        self._outbox = Outbox(run_id, self._deliver, TRANSIENT, spool_dir, f"the tracking server {uri}")
        self._adopt()
        self._system = _SystemMetrics(uri, self._log_system_metrics) if system_metrics else None
        atexit.register(self.close)

    def log_train_step(self, metrics: Mapping[str, float], step: int) -> None:
        """Log metrics once for each key and step: steps repeated after a restart are the same and are left out.

        They are sent every few seconds: a call for every step would take time from the steps.
        """
        self._train_step = max(self._train_step, step)
        self._put_once(metrics, step)

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log metrics at once, even at a step that has some: the latest value is the one that counts."""
        self._put(metrics, step, once=False, urgent=True)

    def log_tags(self, tags: Mapping[str, str]) -> None:
        self._outbox.put({"tags": {key: str(value) for key, value in tags.items()}}, urgent=True)

    def log_dataset(self, name: str, source: Location, data_hash: str, context: str, profile: str) -> None:
        """Log the corpus as the run's input, with its hash as the digest."""
        dataset = {
            "name": name,
            "digest": data_hash[:MAX_DIGEST_CHARS],
            "source_type": "local" if isinstance(source, Path) else source.scheme,
            "source": json.dumps({"uri": source.as_uri() if isinstance(source, Path) else str(source)}),
            "profile": profile,
        }
        self._outbox.put({"dataset": dataset, "context": context}, urgent=True)

    def log_artifacts(self, folder: Path, artifact_path: str) -> None:
        self.flush()
        patiently(lambda: self._client.log_artifacts(self._run_id, str(folder), artifact_path), self._uri)

    def log_text(self, text: str, artifact_file: str) -> None:
        self.flush()
        patiently(lambda: self._client.log_text(self._run_id, text, artifact_file), self._uri)

    def flush(self, timeout_s: float = CLOSE_LIMIT_S) -> bool:
        """Wait until the server has what was logged so far; False where it has not after `timeout_s`."""
        return self._outbox.flush(timeout_s)

    def close(self, timeout_s: float = CLOSE_LIMIT_S) -> int:
        """Send what is waiting; the run stays open for the driver.

        Returns:
            metric values that the server has not taken within `timeout_s`; a warning then says where they are.
        """
        if self._system is not None:
            self._system.stop()
        left = self._outbox.close(timeout_s)
        n_metrics = sum(len(entry.get("metrics", ())) for entry in left)
        if left and self._is_open:
            place = self._outbox.spool_path
            log.warning(
                "the tracking server %s has not taken %d metric value(s) and %d other entries of run %s in %.0f s; %s",
                hide_secrets(self._uri),
                n_metrics,
                sum("metrics" not in entry for entry in left),
                self._run_id,
                timeout_s,
                f"they are kept in {place} and sent when the run is next opened" if place else "they are lost",
            )
        self._is_open = False
        atexit.unregister(self.close)
        return n_metrics

    def finish(self, status: str = "FINISHED", timeout_s: float = CLOSE_LIMIT_S) -> None:
        """Send what is waiting, also what the workers could not send, then the run's status; then close."""
        self._adopt()
        self._outbox.put({"status": status, "time_ms": _now_ms()}, urgent=True)
        self.close(timeout_s)

    def _put_once(self, metrics: Mapping[str, float], step: int) -> None:
        fresh = {key: value for key, value in metrics.items() if step > self._last_step.get(key, -1)}
        self._last_step |= dict.fromkeys(fresh, step)
        if fresh:
            self._put(fresh, step, once=True, urgent=False)

    def _put(self, metrics: Mapping[str, float], step: int, once: bool, urgent: bool) -> None:
        now_ms = _now_ms()  # part of a metric's identity: one that is sent twice is stored once
        values = [[key, float(value), now_ms, step] for key, value in metrics.items()]
        for start in range(0, len(values), MAX_METRICS_PER_CALL):
            part = values[start : start + MAX_METRICS_PER_CALL]
            self._outbox.put({"metrics": part, "once": once}, urgent)

    def _log_system_metrics(self, metrics: Mapping[str, float]) -> bool:
        """At the present training step, unless that has some; says whether they were taken."""
        if self._train_step <= max((self._last_step.get(key, -1) for key in metrics), default=-1):
            return False
        self._put_once(metrics, self._train_step)
        return True

    def _adopt(self) -> None:
        """Take over what a logger of this run that was killed, or closed while the server was away, has left."""
        for entry in self._outbox.adopt():
            for key, _, _, step in entry.get("metrics", ()) if entry.get("once") else ():
                self._last_step[key] = max(step, self._last_step.get(key, -1))
            self._stored_step = None

    # --- in the outbox's thread

    def _deliver(self, entries: Sequence[Entry]) -> int:
        """Send one call's worth of the leading entries."""
        try:
            if self._stored_step is None:
                self._ask_what_is_stored()
            if "metrics" not in entries[0]:
                self._deliver_other(entries[0])
                return 1
            metrics, n_entries = [], 0
            for entry in entries:
                if "metrics" not in entry or len(metrics) + len(entry["metrics"]) > MAX_METRICS_PER_CALL:
                    break
                metrics += [Metric(*value) for value in entry["metrics"] if not self._is_stored(entry, value)]
                n_entries += 1
            if metrics:
                self._client.log_batch(self._run_id, metrics=metrics)
        except TRANSIENT as error:
            self._stored_step = None  # the answer may have been lost, not the call
            if not self._is_gone(error):
                raise
            if not self._is_told_gone:
                log.warning(
                    "run %s is deleted at the tracking server %s: what is logged to it from now on is dropped",
                    self._run_id,
                    hide_secrets(self._uri),
                )
            self._is_told_gone = True
            return len(entries)
        return n_entries

    def _is_gone(self, error: Exception) -> bool:
        """Whether a call was refused because somebody has deleted the run, which no patience mends."""
        if not isinstance(error, MlflowException) or error.error_code in TRANSIENT_CODES:
            return False
        try:
            return self._client.get_run(self._run_id).info.lifecycle_stage == LifecycleStage.DELETED
        except TRANSIENT as found:
            return isinstance(found, MlflowException) and found.error_code == "RESOURCE_DOES_NOT_EXIST"

    def _ask_what_is_stored(self) -> None:
        data = self._client.get_run(self._run_id).data
        self._opened_ms = int(data.tags.get(OPENED_TAG, 0))
        self._stored_step = {metric.key: metric.step for metric in data.to_proto().metrics}  # the latest of each key

    def _is_stored(self, entry: Entry, value: Sequence[Any]) -> bool:
        """Steps of a key are delivered in order, so the server has all up to the latest that it has."""
        key, _, _, step = value
        return entry["once"] and step <= (self._stored_step or {}).get(key, -1)

    def _deliver_other(self, entry: Entry) -> None:
        if "tags" in entry:
            self._client.log_batch(self._run_id, tags=[RunTag(key, value) for key, value in entry["tags"].items()])
        elif "dataset" in entry:
            tag = InputTag("mlflow.data.context", entry["context"])
            self._client.log_inputs(self._run_id, [DatasetInput(MlflowDataset(**entry["dataset"]), [tag])])
        elif entry["time_ms"] >= self._opened_ms:  # else the run has been opened again since
            self._client.set_terminated(self._run_id, entry["status"], entry["time_ms"])


class _SystemMetrics(threading.Thread):
    """MLflow's system metrics through our outbox; MLflow's own thread ends at the first call that fails."""

    def __init__(self, uri: str, record: Callable[[Mapping[str, float]], bool]) -> None:
        super().__init__(name="system-metrics", daemon=True)
        self._source = SystemMetricsMonitor("", tracking_uri=uri)  # of which only the collecting part is used
        self._record = record
        self._stopped = threading.Event()
        self.start()

    def run(self) -> None:
        while not self._stopped.wait(SYSTEM_METRICS_INTERVAL_S):
            self._source.collect_metrics()
            values = self._source.aggregate_metrics()  # means since they were last recorded
            if self._record({f"system/{key}": value for key, value in values.items()}):
                for monitor in self._source.monitors:
                    monitor.clear_metrics()

    def stop(self) -> None:
        self._stopped.set()


def _find_run(client: MlflowClient, experiment_id: str, fingerprint: str, parent_run_id: str | None) -> Run | None:
    found = client.search_runs([experiment_id], f"tags.`{FINGERPRINT_TAG}` = '{fingerprint}'")
    return next((run for run in found if run.data.tags.get(PARENT_TAG) == parent_run_id), None)


def _experiment_id(client: MlflowClient, name: str, uri: str) -> str:
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return experiment.experiment_id
    location = None
    database = sqlite_file(uri)
    if database is not None:  # artifacts beside the database, not in whatever folder we were started from
        location = (database.parent / "mlartifacts").as_uri()
    try:
        return client.create_experiment(name, artifact_location=location)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    experiment = client.get_experiment_by_name(name)  # made by another process a moment ago
    assert experiment is not None
    return experiment.experiment_id


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for key, value in tree.items():
        flat += _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(prefix + key, value)]
    return flat


def _now_ms() -> int:
    return int(time.time() * 1000)
