"""Fixtures that every package's tests share."""

from __future__ import annotations

import gc
import json
import os
import shlex
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_AUTH_MODE", "token")  # one mode for ray.init and the command line alike
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.3")  # Train sees sooner that its workers are done
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # one process less a training; no node goes here
for name in ("enable_worker_prestart", "prestart_worker_first_driver"):  # for jobs without an environment: none is here
    os.environ.setdefault(f"RAY_{name}", "0")


START = Path(__file__).resolve().parent / "python_start"  # what every process of the tests reads at its start
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(START), os.environ.get("PYTHONPATH"))))
gc.set_threshold(50_000, 10, 10)  # this one has started already

PASSED_ON = ("OMP_NUM_THREADS", "DS_ACCELERATOR", "HF_HUB_OFFLINE", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S")
REPO = Path(__file__).resolve().parent.parent


# One process runs these, and runs them first: two long trainings at once take more than twice as long on two cores, and
# clocks run out; some of them serve where the session's service will stand.
TRAININGS = {
    *(f"tests/integration/test_{name}.py" for name in ("demo_output", "dialogues", "losses", "resume")),
    "tests/ray_jobs/own/test_job.py",
    "tests/serve/bench/test_job.py",
}


class FilesAndTrainings(LoadFileScheduling):
    """In several processes a file's tests stay together, whose fixtures are made once, and so do the long trainings."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return "trainings" if file in TRAININGS else file


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """For slow tests alone the files without any, five of six, are not imported."""
    is_read = config.option.markexpr == "slow" and collection_path.suffix == ".py"
    return True if is_read and "mark.slow" not in collection_path.read_text(encoding="utf-8") else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.nodeid.split("::")[0] not in TRAININGS)  # otherwise as they were


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FilesAndTrainings:
    return FilesAndTrainings(config, log)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of papers, golden values and real media beside the project; tests that need it skip without it."""
    folder = REPO.parent / "shared"
    if not (folder / "oracle").is_dir():
        pytest.skip(f"no folder {folder} with the reference data: golden-value tests need it")
    return folder


@pytest.fixture(scope="session")
def warm_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Workers of every Ray that is started from now on need not import what is large: see tests/python_start."""
    from ray_jobs.cluster import JOB_CONFIG_ENV, worker_env

    script = START / "warm_start.py"
    address = tmp_path_factory.mktemp("warm") / "socket"
    python = shlex.join([sys.executable, "-S", "-I", str(script), str(address)])
    os.environ[JOB_CONFIG_ENV] = json.dumps({"runtime_env": {"py_executable": python}})
    command = [sys.executable, script, address]
    env = os.environ | worker_env()  # as quiet as a job has its workers, which is settled while importing
    with subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        yield
        assert server.poll() is None, "the process that forks Ray's workers has ended"
        assert server.stdin is not None
        server.stdin.close()
    del os.environ[JOB_CONFIG_ENV]


@pytest.fixture(scope="session")
def ray_session(warm_python: None) -> Iterator[None]:
    """One Ray instance for the whole test session, with more logical CPUs than cores so that no job starves another."""
    import ray

    ray.init(
        "local",  # a test's own cluster, which leaves its address in Ray's file, is none of this one's
        num_cpus=12,
        include_dashboard=True,
        log_to_driver=False,
        runtime_env={"env_vars": {name: os.environ[name] for name in PASSED_ON}},
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Address of a real S3 HTTP server on this machine, moto's."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """URI of an empty bucket, which this process and those that it starts can reach; the present folder is empty."""
    import boto3

    settings = {"AWS_ENDPOINT_URL": s3_server, "AWS_DEFAULT_REGION": "us-east-1"}
    settings |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    boto3.client("s3").create_bucket(Bucket=name)
    return f"s3://{name}"
