"""MLflow: the only module that imports it. Train V2 takes no Tune callbacks, so rank 0 logs by itself."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Dataset as MlflowDataset
from mlflow.entities import DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.tracking import MlflowClient

FINGERPRINT_TAG = "toolmm.fingerprint"
MAX_PARAMS_PER_CALL = 100
MAX_METRICS_PER_CALL = 1000
FLUSH_INTERVAL_S = 5.0
MAX_PARAM_CHARS = 6000
MAX_DIGEST_CHARS = 36

logging.getLogger("alembic").setLevel(logging.WARNING)
logging.getLogger("mlflow").setLevel(logging.WARNING)


def open_run(uri: str, experiment: str, run_name: str, fingerprint: str, params: Mapping[str, Any]) -> str:
    """Find the run of this fingerprint, or create it, and return its id: a resumed job goes on in the same run."""
    client = _client(uri)
    experiment_id = _experiment_id(client, experiment, uri)
    found = client.search_runs([experiment_id], f"tags.`{FINGERPRINT_TAG}` = '{fingerprint}'", max_results=1)
    if found:
        run_id = found[0].info.run_id
        client.update_run(run_id, status="RUNNING")
        return run_id
    run = client.create_run(experiment_id, tags={FINGERPRINT_TAG: fingerprint}, run_name=run_name)
    flat = [Param(key, str(value)[:MAX_PARAM_CHARS]) for key, value in _flatten(params)]
    for start in range(0, len(flat), MAX_PARAMS_PER_CALL):
        client.log_batch(run.info.run_id, params=flat[start : start + MAX_PARAMS_PER_CALL])
    return run.info.run_id


class RunLogger:
    """Logs to an existing run; made on rank 0 and in the driver."""

    def __init__(self, uri: str, run_id: str, system_metrics: bool = False) -> None:
        self._client = _client(uri)
        self._run_id = run_id
        self._monitor = None
        self._waiting: list[Metric] = []
        self._last_flush = time.monotonic()
        self._last_step = self._logged_until("train/loss")
        if system_metrics:
            mlflow.set_tracking_uri(uri)
            self._monitor = SystemMetricsMonitor(run_id, resume_logging=self._last_step >= 0)
            self._monitor.start()

    def _logged_until(self, key: str) -> int:
        return max((metric.step for metric in self._client.get_metric_history(self._run_id, key)), default=-1)

    def log_train_step(self, metrics: Mapping[str, float], step: int) -> None:
        """Log a step's metrics once: steps repeated after a restart are the same and are not logged again.

        They are sent every few seconds: a call for every step would take time from the steps.
        """
        if step <= self._last_step:
            return
        self._last_step = step
        now_ms = int(time.time() * 1000)
        self._waiting += [Metric(key, float(value), now_ms, step) for key, value in metrics.items()]
        if time.monotonic() - self._last_flush >= FLUSH_INTERVAL_S:
            self.flush()

    def flush(self) -> None:
        for start in range(0, len(self._waiting), MAX_METRICS_PER_CALL):
            self._client.log_batch(self._run_id, metrics=self._waiting[start : start + MAX_METRICS_PER_CALL])
        self._waiting, self._last_flush = [], time.monotonic()

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        self.flush()
        now_ms = int(time.time() * 1000)
        self._client.log_batch(
            self._run_id, metrics=[Metric(key, float(value), now_ms, step) for key, value in metrics.items()]
        )

    def log_tags(self, tags: Mapping[str, str]) -> None:
        self._client.log_batch(self._run_id, tags=[RunTag(key, str(value)) for key, value in tags.items()])

    def log_dataset(self, name: str, source: Path, data_hash: str, context: str, profile: str) -> None:
        """Log the corpus as the run's input, with its hash as the digest."""
        dataset = MlflowDataset(
            name=name,
            digest=data_hash[:MAX_DIGEST_CHARS],
            source_type="local",
            source=f'{{"uri": "{source.as_uri()}"}}',
            profile=profile,
        )
        tag = InputTag("mlflow.data.context", context)
        self._client.log_inputs(self._run_id, [DatasetInput(dataset, [tag])])

    def log_artifacts(self, folder: Path, artifact_path: str) -> None:
        self._client.log_artifacts(self._run_id, str(folder), artifact_path)

    def log_text(self, text: str, artifact_file: str) -> None:
        self._client.log_text(self._run_id, text, artifact_file)

    def close(self) -> None:
        """Send what is waiting; the run stays open for the driver."""
        self.flush()
        if self._monitor is not None:
            self._monitor.finish()

    def finish(self, status: str = "FINISHED") -> None:
        self._client.set_terminated(self._run_id, status)


def register_bundle(uri: str, run_id: str, name: str, bundle: Path) -> str:
    """Register a bundle as a model version with a signature and make it `champion`; returns the version.

    The registered model is code plus the bundle's files: nothing is pickled.
    """
    from mlflow.models import ModelSignature
    from mlflow.types.schema import ColSpec, DataType, Schema

    mlflow.set_tracking_uri(uri)
    warnings.filterwarnings("ignore", message=".*input example was not provided.*")  # the signature is written out here
    signature = ModelSignature(
        inputs=Schema(
            [
                ColSpec(DataType.string, "instruction"),
                ColSpec(DataType.string, "modality"),
                ColSpec(DataType.binary, "media", required=False),
            ]
        ),
        outputs=Schema([ColSpec(DataType.string, "tool_id"), ColSpec(DataType.double, "probability")]),
    )
    with mlflow.start_run(run_id=run_id):
        info = mlflow.pyfunc.log_model(
            name="bundle",
            python_model=str(Path(__file__).with_name("pyfunc_model.py")),
            artifacts={"bundle": str(bundle)},
            signature=signature,
            registered_model_name=name,
            pip_requirements=[],
        )
    version = str(info.registered_model_version)
    _client(uri).set_registered_model_alias(name, "champion", version)
    return version


def _client(uri: str) -> MlflowClient:
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    return MlflowClient(tracking_uri=uri)


def _experiment_id(client: MlflowClient, name: str, uri: str) -> str:
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return experiment.experiment_id
    location = None
    if uri.startswith("sqlite:///"):  # artifacts beside the database, not in whatever folder we were started from
        location = (Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts").as_uri()
    with suppress(MlflowException):  # made by another process a moment ago
        return client.create_experiment(name, artifact_location=location)
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    return experiment.experiment_id


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for key, value in tree.items():
        flat += _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(prefix + key, value)]
    return flat
