"""MLflow over SQLite: one run per job, each step once, parameters, data and artifacts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

import ray_jobs.tracking
from ray_jobs.tracking import RunLogger, open_run

PARAMS = {"seed": 0, "train": {"lr": 5e-4, "betas": (0.9, 0.95)}, "model": {"nested": {"deep": None}}}


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for all tests: making it takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('tracking') / 'deeper' / 'mlflow.db'}"


def start(uri: str, fingerprint: str) -> str:
    return open_run(uri, "toolmm", f"run-{fingerprint}", fingerprint, PARAMS)


def read(uri: str, run_id: str) -> Run:
    return MlflowClient(uri).get_run(run_id)


def steps_of(uri: str, run_id: str, key: str) -> list[int]:
    return [metric.step for metric in MlflowClient(uri).get_metric_history(run_id, key)]


def test_the_same_job_goes_on_in_the_same_run(uri: str) -> None:
    first = start(uri, "aaa")
    RunLogger(uri, first).finish()
    assert read(uri, first).info.status == "FINISHED"
    assert start(uri, "aaa") == first
    assert read(uri, first).info.status == "RUNNING"
    assert read(uri, first).info.run_name == "run-aaa"
    other = start(uri, "bbb")
    assert other != first
    RunLogger(uri, other).finish("FAILED")
    assert read(uri, other).info.status == "FAILED"


def test_parameters_are_flattened_and_long_ones_cut(uri: str) -> None:
    many = {f"key{number}": number for number in range(250)}
    run_id = open_run(uri, "toolmm", "many", "many", PARAMS | {"long": "x" * 9000, "many": many})
    params = read(uri, run_id).data.params
    assert params["train.lr"] == "0.0005"
    assert params["train.betas"] == "(0.9, 0.95)"
    assert params["model.nested.deep"] == "None"
    assert len(params["long"]) == ray_jobs.tracking.MAX_PARAM_CHARS
    assert params["many.key249"] == "249"
    assert len(params) == 4 + 1 + 250


def test_steps_wait_until_flushed_and_are_logged_once(uri: str) -> None:
    run_id = start(uri, "steps")
    logger = RunLogger(uri, run_id)
    for step in range(5):
        logger.log_train_step({"train/loss": 1.0 / (step + 1), "train/lr": 0.1}, step)
    assert steps_of(uri, run_id, "train/loss") == []
    logger.close()
    assert steps_of(uri, run_id, "train/loss") == [0, 1, 2, 3, 4]
    assert read(uri, run_id).data.metrics["train/loss"] == 0.2
    # a worker that was killed after step 4 starts again from the checkpoint after step 1
    again = RunLogger(uri, run_id)
    for step in range(2, 7):
        again.log_train_step({"train/loss": 1.0 / (step + 1), "train/lr": 0.1}, step)
    again.close()
    again.close()
    assert steps_of(uri, run_id, "train/loss") == list(range(7))
    assert steps_of(uri, run_id, "train/lr") == list(range(7))


def test_a_backlog_larger_than_a_call_takes_is_sent_whole(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_jobs.tracking, "MAX_METRICS_PER_CALL", 7)
    run_id = start(uri, "backlog")
    logger = RunLogger(uri, run_id)
    for step in range(10):
        logger.log_train_step({"train/loss": 1.0, "train/lr": 0.1}, step)
    logger.flush()
    assert steps_of(uri, run_id, "train/loss") == steps_of(uri, run_id, "train/lr") == list(range(10))


def test_a_metric_in_between_keeps_the_order(uri: str) -> None:
    run_id = start(uri, "order")
    logger = RunLogger(uri, run_id)
    logger.log_train_step({"train/loss": 2.0}, 0)
    logger.log_metrics({"val/tool_accuracy": 0.5}, 0)
    assert steps_of(uri, run_id, "train/loss") == [0], "what waited is sent first"
    assert read(uri, run_id).data.metrics["val/tool_accuracy"] == 0.5


def test_the_corpus_is_an_input_with_its_hash(uri: str, tmp_path: Path) -> None:
    run_id = start(uri, "data")
    digest = "0123456789abcdef" * 4
    for _ in range(2):  # a resumed job logs it again
        RunLogger(uri, run_id).log_dataset("toolmm-mini", tmp_path, digest, "train", '{"train": 3}')
    inputs = read(uri, run_id).inputs.dataset_inputs
    assert len(inputs) == 1
    assert inputs[0].dataset.name == "toolmm-mini"
    assert digest.startswith(inputs[0].dataset.digest)
    assert len(inputs[0].dataset.digest) == ray_jobs.tracking.MAX_DIGEST_CHARS
    assert json.loads(inputs[0].dataset.source) == {"uri": tmp_path.as_uri()}
    assert [(tag.key, tag.value) for tag in inputs[0].tags] == [("mlflow.data.context", "train")]


def test_artifacts_lie_beside_the_database(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_id = start(uri, "artifacts")
    logger = RunLogger(uri, run_id)
    logger.log_text("hello", "notes/report.md")
    logger.log_tags({"toolmm.x": "1"})
    folder = Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts"
    (found,) = folder.rglob("report.md")
    assert found.read_text() == "hello"
    assert read(uri, run_id).data.tags["toolmm.x"] == "1"
    assert list(tmp_path.iterdir()) == [], "nothing is written to the folder that we were started from"
