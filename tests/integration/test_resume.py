"""Kills in the middle of a training: what comes out is what an undisturbed run gives, bit for bit."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

import pytest
import ray
from ray.util.state import list_actors
from small_training import TRAIN_KEYS, assert_equal_runs, build_base, build_spec, find_step, history
from tracking_server import TrackingServer

from data_pipeline.errors import InputError
from ray_jobs import prepare
from ray_jobs.config import RunSpec
from ray_jobs.train import job as train
from ray_jobs.train.job import TrainSummary
from ray_jobs.train.validation import SCORE_KEY

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("ray_session")]

EPOCHS = 3
SETTINGS = (
    "train.workers=2",
    "train.zero_stage=2",
    "train.checkpoint_every_steps=5",  # 13 steps are an epoch: most checkpoints lie within one
    "model.lora_dropout=0.1",
    "train.lora_plus_ratio=2",
)
KILL_FROM_STEP = 15  # in the second epoch, some steps behind a checkpoint; 39 steps in all
WORKER_KILLED_FROM_STEP = 25


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [*build_base(tmp_path_factory.mktemp("resume"), EPOCHS), *SETTINGS]


@pytest.fixture(scope="module")
def undisturbed(base: list[str], ray_session: None) -> tuple[RunSpec, TrainSummary]:
    spec = build_spec(base, "undisturbed")
    prepare.run(spec)
    return spec, train.launch(spec)


def copy_corpus(source: RunSpec, target: RunSpec) -> None:
    shutil.copytree(source.corpus_dir, target.corpus_dir)


def wait_for_step(spec: RunSpec, step: int, timeout_s: float = 400) -> None:
    """Until the run, its steps logged on the way, has taken that many."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if find_step(spec) >= step:
            return
        time.sleep(0.02)
    raise AssertionError(f"no checkpoint of step {step} within {timeout_s} s")


def kill_later(spec: RunSpec, kill: Callable[[], None]) -> Future[None]:
    """Its result is there once the kill has happened; what went wrong is raised by it."""
    killed: Future[None] = Future()

    def run() -> None:
        try:
            wait_for_step(spec, WORKER_KILLED_FROM_STEP)
            time.sleep(0.3)  # some steps on, so that there is work to lose
            kill()
        except BaseException as error:  # noqa: BLE001  (the test raises it)
            killed.set_exception(error)
        else:
            killed.set_result(None)

    threading.Thread(target=run, daemon=True).start()  # not a pool's, which would be waited for at the end
    return killed


def kill_a_worker() -> None:
    address = ray.get_runtime_context().gcs_address  # there may be another Ray on this machine
    actors = list_actors(address=address, filters=[("state", "=", "ALIVE")])
    workers = [actor for actor in actors if "TrainWorker" in actor.class_name]
    assert len(workers) == 2
    os.kill(workers[-1].pid, signal.SIGKILL)


def end_job(
    base: list[str],
    spec: RunSpec,
    step: int,
    ending: signal.Signals,
    code: int,
    meanwhile: Callable[[], object] = lambda: None,
) -> str:
    """Start the job as a process of its own and end it by a signal after that step; returns what it printed."""
    command = [sys.executable, "-m", "ray_jobs", "train", *base, f"name={spec.name}"]
    env = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    log = spec.run_dir / "job.log"
    step = max(step, find_step(spec) + 1)  # an earlier job, slow to end, may have come further
    with log.open("w") as output:
        job = subprocess.Popen(command, env=env, stdout=output, stderr=subprocess.STDOUT)
    try:
        wait_for_step(spec, step)
        meanwhile()
        job.send_signal(ending)
        assert job.wait(60) == code, log.read_text()
    except AssertionError as error:
        raise AssertionError(log.read_text()) from error
    finally:
        job.kill()
        job.wait()
    return log.read_text()


def test_kills_of_every_kind_change_nothing(base: list[str], undisturbed: tuple[RunSpec, TrainSummary]) -> None:
    """A job that Ctrl-C ends, submitted again and killed, submitted again and a worker of it killed."""
    spec = build_spec(base, "killed", "train.max_failures=1")
    copy_corpus(undisturbed[0], spec)
    said = end_job(base, spec, 5, signal.SIGINT, 130)
    assert "interrupted" in said
    assert "Traceback" not in said

    def submit_twice() -> None:
        with pytest.raises(InputError, match="runs this very job"):
            train.launch(spec)

    end_job(base, spec, KILL_FROM_STEP, signal.SIGKILL, -signal.SIGKILL, meanwhile=submit_twice)
    assert find_step(spec) < WORKER_KILLED_FROM_STEP, "the job ended before the kill"
    killed = kill_later(spec, kill_a_worker)
    summary = train.launch(spec)
    assert killed.done(), "the run ended before the kill"
    killed.result()
    assert_equal_runs(undisturbed, spec, summary, (*TRAIN_KEYS, "val/tool_accuracy", SCORE_KEY))


def test_an_elastic_run_takes_what_there_is(
    base: list[str], undisturbed: tuple[RunSpec, TrainSummary], tracking_server: TrackingServer
) -> None:
    """Of one to two workers only one fits; the plan of steps is that of two. Tracked on a server over PostgreSQL."""
    cluster = ("train.workers=[1, 2]", "train.cpus_per_worker=7", "train.max_steps=3")
    spec = build_spec(base, "elastic", *cluster, f"tracking.uri={tracking_server.uri}", "tracking.experiment=elastic")
    copy_corpus(undisturbed[0], spec)
    summary = train.launch(spec)
    expected = history(undisturbed[0], undisturbed[1].mlflow_run_id, "train/rows")
    assert history(spec, summary.mlflow_run_id, "train/rows") == {step: expected[step] for step in range(3)}
