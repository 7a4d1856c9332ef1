"""MLflow over SQLite: one run per job, each step once, parameters, data and artifacts."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

import ray_jobs.tracking.runs
from data_pipeline.errors import InputError
from ray_jobs.tracking.runs import PARENT_TAG, RunLogger, open_run

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
    assert len(params["long"]) == ray_jobs.tracking.runs.MAX_PARAM_CHARS
    assert params["many.key249"] == "249"
    assert len(params) == 4 + 1 + 250


def test_steps_wait_until_flushed_and_are_logged_once(uri: str) -> None:
    run_id = start(uri, "steps")
    logger = RunLogger(uri, run_id)
    for step in range(5):
        logger.log_train_step({"train/loss": 1.0 / (step + 1), "train/lr": 0.1}, step)
    assert steps_of(uri, run_id, "train/loss") == []
    assert logger.close() == 0
    assert steps_of(uri, run_id, "train/loss") == [0, 1, 2, 3, 4]
    assert read(uri, run_id).data.metrics["train/loss"] == 0.2
    # a worker that was killed after step 4 starts again from the checkpoint after step 1
    again = RunLogger(uri, run_id)
    for step in range(2, 7):
        again.log_train_step({"train/loss": 1.0 / (step + 1), "train/lr": 0.1}, step)
        again.log_train_step({"val/tool_accuracy": 0.5}, step)
    again.close()
    again.close()
    assert steps_of(uri, run_id, "train/loss") == steps_of(uri, run_id, "train/lr") == list(range(7))
    assert steps_of(uri, run_id, "val/tool_accuracy") == list(range(2, 7)), "each key has steps of its own"


def test_a_backlog_larger_than_a_call_takes_is_sent_whole(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_jobs.tracking.runs, "MAX_METRICS_PER_CALL", 7)
    run_id = start(uri, "backlog")
    logger = RunLogger(uri, run_id)
    for step in range(10):
        logger.log_train_step({"train/loss": 1.0, "train/lr": 0.1}, step)
    assert logger.flush()
    assert steps_of(uri, run_id, "train/loss") == steps_of(uri, run_id, "train/lr") == list(range(10))


def test_a_metric_in_between_keeps_the_order_and_the_latest_counts(uri: str) -> None:
    run_id = start(uri, "order")
    logger = RunLogger(uri, run_id)
    logger.log_train_step({"train/loss": 2.0}, 0)
    for value in (0.75, 0.5):
        logger.log_metrics({"eval/acc": value})
        assert logger.flush()
    assert steps_of(uri, run_id, "train/loss") == [0]
    assert read(uri, run_id).data.metrics["eval/acc"] == 0.5, "an evaluation that is repeated replaces the former one"


@pytest.mark.parametrize("is_answer_lost", [False, True], ids=["call-lost", "answer-lost"])
def test_an_outage_costs_no_metric_and_no_time(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, is_answer_lost: bool
) -> None:
    """A call that fails may or may not have been carried out; the process is then killed, and another one goes on."""
    run_id = start(uri, f"outage-{is_answer_lost}")
    send = MlflowClient.log_batch

    def fail(*args: object, **kwargs: object) -> None:
        if is_answer_lost:
            send(*args, **kwargs)  # pyright: ignore[reportArgumentType]
        raise MlflowException("API request to http://me:secret@host failed")

    monkeypatch.setattr(MlflowClient, "log_batch", fail)
    killed = RunLogger(uri, run_id, spool_dir=tmp_path)
    for step in range(4):
        killed.log_train_step({"train/loss": float(step), "train/lr": float("nan")}, step)
    killed.log_metrics({"eval/acc": 0.5})
    killed.log_tags({"toolmm.y": "2"})
    begun_s = time.monotonic()
    assert killed.close(timeout_s=0.3) == 9
    assert time.monotonic() - begun_s < 2
    assert "has not taken 9 metric value(s) and 1 other entries" in caplog.text
    assert str(tmp_path) in caplog.text
    assert "secret" not in caplog.text
    assert len(list(tmp_path.iterdir())) == 1

    monkeypatch.setattr(MlflowClient, "log_batch", send)
    again = RunLogger(uri, run_id, spool_dir=tmp_path)
    for step in range(2, 6):
        again.log_train_step({"train/loss": float(step), "train/lr": float("nan")}, step)
    assert again.close() == 0
    assert steps_of(uri, run_id, "train/loss") == steps_of(uri, run_id, "train/lr") == list(range(6))
    assert steps_of(uri, run_id, "eval/acc") == [0]
    assert read(uri, run_id).data.tags["toolmm.y"] == "2"
    assert list(tmp_path.iterdir()) == []


def test_a_status_that_arrives_late_does_not_end_a_run_that_goes_on(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = start(uri, "late")
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "set_terminated", lambda *_: (_ for _ in ()).throw(MlflowException("away")))
        RunLogger(uri, run_id, spool_dir=tmp_path).finish("FAILED", timeout_s=0.2)
    time.sleep(0.002)  # the times that decide are whole milliseconds
    assert start(uri, "late") == run_id
    logger = RunLogger(uri, run_id, spool_dir=tmp_path)
    assert logger.flush()
    assert read(uri, run_id).info.status == "RUNNING"
    logger.finish()
    assert read(uri, run_id).info.status == "FINISHED"


def test_what_is_logged_to_a_deleted_run_is_dropped_with_one_line(
    uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = start(uri, "deleted")
    logger = RunLogger(uri, run_id, spool_dir=tmp_path)
    other = RunLogger(uri, start(uri, "not deleted"), spool_dir=tmp_path)
    logger.log_metrics({"eval/acc": 0.5})
    assert logger.flush()
    client = MlflowClient(uri)
    client.delete_run(run_id)
    for step in range(3):
        logger.log_train_step({"train/loss": 1.0}, step)
    logger.log_tags({"toolmm.x": "1"})
    assert logger.flush()
    other.log_metrics({"eval/acc": 0.25})
    assert other.flush()
    logger.finish()
    other.close()
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        f"run {run_id} is deleted at the tracking server {uri}: what is logged to it from now on is dropped"
    ]
    assert list(tmp_path.iterdir()) == []
    assert read(uri, start(uri, "not deleted")).data.metrics["eval/acc"] == 0.25
    client.restore_run(run_id)
    again = RunLogger(uri, run_id)
    again.log_train_step({"train/loss": 1.0}, 3)
    again.close()
    assert steps_of(uri, run_id, "train/loss") == [3]
    gone = RunLogger(uri, "0" * 32, spool_dir=tmp_path)  # as one that `mlflow gc` has removed for good
    gone.log_metrics({"eval/acc": 0.5})
    assert gone.close() == 0


def test_a_full_disk_is_no_outage(uri: str, tmp_path: Path) -> None:
    run_id = start(uri, "full disk")
    logger = RunLogger(uri, run_id)
    (tmp_path / "full.md").write_text("fine", encoding="utf-8")
    logger.log_artifacts(tmp_path, "evaluation")
    (stored,) = (Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts").rglob(f"{run_id}/**/full.md")
    stored.unlink()
    stored.symlink_to("/dev/full")
    with pytest.raises(InputError, match=r"^no space left on device; make room there"):
        logger.log_artifacts(tmp_path, "evaluation")
    logger.close()


def test_trials_hang_below_their_sweep(uri: str) -> None:
    sweep = start(uri, "sweep")
    trial = open_run(uri, "toolmm", "trial", "trial", PARAMS, parent_run_id=sweep)
    assert read(uri, trial).data.tags[PARENT_TAG] == sweep
    assert open_run(uri, "toolmm", "trial", "trial", PARAMS, parent_run_id=sweep) == trial, "re-attached"
    alone = start(uri, "trial")
    assert alone != trial, "the same job outside the sweep is a run of its own"
    assert start(uri, "trial") == alone


def test_a_server_that_never_answers_is_named_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray_jobs.tracking.client.PATIENCE_S", 0.1)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(InputError, match=r"http://\*\*\*@127\.0\.0\.1:9 has not answered") as caught:
        open_run("http://me:secret@127.0.0.1:9", "toolmm", "away", "away", PARAMS)
    assert "secret" not in str(caught.value)


def test_a_gpu_is_among_the_system_metrics(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow asks NVIDIA's library, which is installed with the project; here it answers as with one GPU at work."""
    import pynvml

    numbers = {"DeviceGetUtilizationRates": SimpleNamespace(gpu=87), "DeviceGetCount": 1, "Init": None}
    numbers |= {"DeviceGetMemoryInfo": SimpleNamespace(used=30e9, total=80e9), "DeviceGetHandleByIndex": 0}
    numbers |= {"DeviceGetPowerUsage": 200e3, "DeviceGetEnforcedPowerLimit": 400e3}
    for name, number in numbers.items():
        monkeypatch.setattr(pynvml, f"nvml{name}", lambda *_, number=number: number)
    monkeypatch.setattr(ray_jobs.tracking.runs, "SYSTEM_METRICS_INTERVAL_S", 0.02)
    run_id = start(uri, "gpu")
    logger = RunLogger(uri, run_id, system_metrics=True)
    logger.log_train_step({"train/loss": 1.0}, 3)
    time.sleep(0.2)
    logger.close()
    found = MlflowClient(uri).get_run(run_id).data.metrics
    assert found["system/gpu_0_utilization_percentage"] == 87
    assert found["system/gpu_0_memory_usage_percentage"] == 37.5


def test_system_metrics_stand_at_training_steps(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_jobs.tracking.runs, "SYSTEM_METRICS_INTERVAL_S", 0.02)
    run_id = start(uri, "system")
    logger = RunLogger(uri, run_id, system_metrics=True)
    time.sleep(0.1)
    for step in (3, 4):
        logger.log_train_step({"train/loss": 1.0}, step)
        time.sleep(0.2)
    logger.close()
    assert steps_of(uri, run_id, "system/cpu_utilization_percentage") == [3, 4], "once a step, none before the first"


def test_the_corpus_is_an_input_with_its_hash(uri: str, tmp_path: Path) -> None:
    run_id = start(uri, "data")
    digest = "0123456789abcdef" * 4
    for _ in range(2):  # a resumed job logs it again
        logger = RunLogger(uri, run_id)
        logger.log_dataset("toolmm-mini", tmp_path, digest, "train", '{"train": 3}')
        logger.close()
    inputs = read(uri, run_id).inputs.dataset_inputs
    assert len(inputs) == 1
    assert inputs[0].dataset.name == "toolmm-mini"
    assert digest.startswith(inputs[0].dataset.digest)
    assert len(inputs[0].dataset.digest) == ray_jobs.tracking.runs.MAX_DIGEST_CHARS
    assert json.loads(inputs[0].dataset.source) == {"uri": tmp_path.as_uri()}
    assert [(tag.key, tag.value) for tag in inputs[0].tags] == [("mlflow.data.context", "train")]


def test_artifacts_lie_beside_the_database(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_id = start(uri, "artifacts")
    logger = RunLogger(uri, run_id)
    logger.log_tags({"toolmm.x": "1"})
    logger.log_text("hello", "notes/report.md")
    folder = Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts"
    (found,) = folder.rglob("report.md")
    assert found.read_text() == "hello"
    assert read(uri, run_id).data.tags["toolmm.x"] == "1"
    assert list(tmp_path.iterdir()) == [], "nothing is written to the folder that we were started from"
