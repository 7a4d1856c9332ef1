"""Tracking as a team runs it: a server over PostgreSQL that dies and comes back, and many processes at once."""

from __future__ import annotations

import multiprocessing
import threading
import time
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from tracking_server import TrackingServer

from ray_jobs.tracking.model_versions import UNDECIDED_TAG, decide_in_turn, get_champion, promote
from ray_jobs.tracking.runs import RunLogger, open_run

pytestmark = pytest.mark.slow

N_PROCESSES = 4
N_STEPS = 40


def steps_of(uri: str, run_id: str, key: str) -> list[int]:
    return [metric.step for metric in MlflowClient(uri).get_metric_history(run_id, key)]


def test_metrics_survive_an_outage(
    tracking_server: TrackingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The server is killed and started again while a training logs; the worker is lost too, and another goes on."""
    monkeypatch.setattr("ray_jobs.tracking.outbox.SEND_INTERVAL_S", 0.2)
    uri = tracking_server.uri
    run_id = open_run(uri, "outage", "run", "outage", {"lr": 0.1})
    first = RunLogger(uri, run_id, system_metrics=True, spool_dir=tmp_path)
    longest_call_s, step = 0.0, 0

    def train(logger: RunLogger, seconds: float) -> None:
        nonlocal longest_call_s, step
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            begun_s = time.monotonic()
            logger.log_train_step({"train/loss": 1.0 / (step + 1), "train/lr": 0.1}, step)
            longest_call_s = max(longest_call_s, time.monotonic() - begun_s)
            step += 1
            time.sleep(0.01)

    train(first, 1.0)
    assert first.flush()
    tracking_server.kill()
    train(first, 1.5)
    assert first.close(timeout_s=0.2) > 0
    checkpoint_step = step - 20
    restart = threading.Thread(target=tracking_server.start)
    restart.start()
    step = checkpoint_step
    second = RunLogger(uri, run_id, spool_dir=tmp_path)
    while restart.is_alive():
        train(second, 0.2)
    train(second, 0.5)
    second.log_metrics({"val/tool_accuracy": 0.9}, step)
    second.finish()

    assert steps_of(uri, run_id, "train/loss") == steps_of(uri, run_id, "train/lr") == list(range(step))
    assert steps_of(uri, run_id, "val/tool_accuracy") == [step]
    assert MlflowClient(uri).get_run(run_id).info.status == "FINISHED"
    assert longest_call_s < 0.5, "training waited for the tracking server"
    assert "does not take what is sent" in caplog.text
    assert list(tmp_path.iterdir()) == []


def _log_a_run(uri: str, number: int, spool_dir: Path) -> None:
    run_id = open_run(uri, "many", f"run-{number}", f"many-{number}", {"number": number})
    logger = RunLogger(uri, run_id, spool_dir=spool_dir)
    for step in range(N_STEPS):
        logger.log_train_step({f"train/m{metric}": float(step) for metric in range(10)}, step)
        if step % 4 == 3:
            logger.log_metrics({"val/tool_accuracy": 0.5}, step)  # at once: the writers meet
    logger.finish()


@pytest.mark.parametrize("store", ["sqlite", "server"])
def test_several_processes_log_at_once(store: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """From an empty database on: the processes also race to make its tables and the experiment."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}" if store == "sqlite" else request.getfixturevalue("tracking_server").uri
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ray_jobs.tracking.runs"])
    processes = [
        context.Process(target=_log_a_run, args=(uri, number, tmp_path / "spool")) for number in range(N_PROCESSES)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * N_PROCESSES
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("many")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.data.params["number"] for run in runs) == [str(number) for number in range(N_PROCESSES)]
    for run in runs:
        assert steps_of(uri, run.info.run_id, "train/m9") == list(range(N_STEPS))
        assert steps_of(uri, run.info.run_id, "val/tool_accuracy") == list(range(3, N_STEPS, 4))
        assert run.info.status == "FINISHED"
    assert list((tmp_path / "spool").iterdir()) == []


def test_artifacts_and_champions_live_on_the_server(tracking_server: TrackingServer, tmp_path: Path) -> None:
    uri = tracking_server.uri
    run_id = open_run(uri, "artifacts", "run", "artifacts", {})
    logger = RunLogger(uri, run_id)
    (tmp_path / "report.md").write_text("fine", encoding="utf-8")
    logger.log_artifacts(tmp_path, "evaluation")
    logger.finish()
    (stored,) = tracking_server.artifacts.rglob("report.md")
    assert stored.read_text(encoding="utf-8") == "fine"
    client = MlflowClient(uri)
    client.create_registered_model("tools")
    assert get_champion(uri, "tools") is None
    source = f"{client.get_run(run_id).info.artifact_uri}/evaluation"
    version = client.create_model_version("tools", source, run_id).version
    promote(uri, "tools", str(version))
    champion = get_champion(uri, "tools")
    assert champion is not None
    assert (champion.version, champion.run_id, champion.score) == (str(version), run_id, None)
    tags = {UNDECIDED_TAG: "yes"}
    waiting, deciding = (str(client.create_model_version("tools", source, run_id, tags=tags).version) for _ in range(2))
    first = threading.Timer(0.5, decide_in_turn, (uri, "tools", waiting, lambda _: (False, "no")))
    first.start()
    why = decide_in_turn(uri, "tools", deciding, lambda one: (one == champion, "it has waited for the one before"))
    assert why == (True, "it has waited for the one before")
    first.join()
    assert not any(UNDECIDED_TAG in client.get_model_version("tools", each).tags for each in (waiting, deciding))
