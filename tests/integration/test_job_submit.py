"""`ray job submit --working-dir .` on a head of its own, with token authentication and a bucket, as on a cluster.

Everything runs in subprocesses with an environment of their own, so a Ray that the other tests use is left alone; only
the processes of this head are ended.
"""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import httpx
import psutil
import pytest
from mlflow.tracking import MlflowClient
from PIL import Image

from tests.integration.serve_command import serving

pytestmark = [pytest.mark.ray, pytest.mark.slow]

REPO = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
TOKEN = "0123456789abcdef" * 4
MAX_UPLOAD_BYTES = 6 * 2**20
TOOLS = {"translator": "translate", "summarizer": "summarize", "poet": "write a poem about"}
PROBE = """
import json, os, sys
import ray
from pathlib import Path
from ray_jobs.cluster import connect
from ray_jobs.config import RayOptions

@ray.remote
def look():
    import torch
    import ray_jobs
    names = ("OMP_NUM_THREADS", "DS_ACCELERATOR", "TQDM_DISABLE", "PYTHONWARNINGS", "PROBE")
    return {
        "python": sys.executable,
        "prefix": sys.prefix,
        "threads": torch.get_num_threads(),
        "ray_jobs": ray_jobs.__file__,
        "env": {name: os.environ.get(name) for name in names},
    }

connect(RayOptions())
files = sorted(path.relative_to(Path.cwd()).as_posix() for path in Path.cwd().rglob("*") if path.is_file())
print(json.dumps({"cwd": os.getcwd(), "files": files, "worker": ray.get(look.remote())}))
"""


@dataclass(frozen=True)
class Head:
    """A running head node and what a client needs to talk to it, and to the bucket's server."""

    address: str
    env: dict[str, str]
    s3: dict[str, Any]

    def submit(self, entrypoint: list[str], *options: str) -> subprocess.CompletedProcess[str]:
        """Submit from the project's root and wait; the job's log is in stdout."""
        return self.ray("job", "submit", "--working-dir", ".", *options, "--", *entrypoint)

    def ray(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A command of Ray's about jobs."""
        command = [str(BIN / "ray"), *words[:2], "--address", self.address, *words[2:]]
        return subprocess.run(command, cwd=REPO, env=self.env, capture_output=True, text=True, timeout=550)


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory, s3_server: str) -> Iterator[Head]:
    home = tmp_path_factory.mktemp("home")
    token_path = home / "token"
    token_path.write_text(TOKEN, encoding="utf-8")
    temp_dir = Path(tempfile.mkdtemp(prefix="rj", dir="/tmp"))  # short: unix sockets lie in it
    env = {
        "PATH": f"{BIN}:/usr/bin:/bin",
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_path),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # some processes less; no node goes here
        "RAY_enable_worker_prestart": "0",
        "RAY_prestart_worker_first_driver": "0",
        "DS_ACCELERATOR": "cpu",
        "HF_HUB_OFFLINE": "1",
        "MLFLOW_TRACKING_URI": f"sqlite:///{home}/mlflow.db",  # on the head's disk
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    s3 = {"endpoint_url": s3_server, "region_name": "us-east-1"}
    s3 |= {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    ports = find_free_ports(5)
    names = ("port", "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port", "metrics-export-port")
    command = [str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=8", "--include-dashboard=true"]
    command += [f"--{name}={port}" for name, port in zip(names, ports, strict=True)]
    command += ["--min-worker-port=0", "--max-worker-port=0", f"--object-store-memory={200 * 2**20}"]
    command += [f"--temp-dir={temp_dir}", "--node-ip-address=127.0.0.1"]
    log_path = home / "head.log"
    with log_path.open("w", encoding="utf-8") as log:
        process = subprocess.Popen(command, cwd=home, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        head = Head(f"http://127.0.0.1:{ports[1]}", env, s3)
        wait_until_up(head, process, log_path)
        yield head
    finally:
        stop(process, temp_dir)
        shutil.rmtree(temp_dir, ignore_errors=True)


def find_free_ports(n: int) -> list[int]:
    sockets = [socket.socket() for _ in range(n)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def request_jobs(head: Head, token: str | None) -> int:
    """HTTP status of the job server's list of jobs."""
    request = urllib.request.Request(f"{head.address}/api/jobs/")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code


def wait_until_up(head: Head, process: subprocess.Popen[bytes], log_path: Path, timeout_s: float = 180) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            if request_jobs(head, TOKEN) == 200:
                return
        except OSError:
            pass
        time.sleep(0.5)
    pytest.fail(f"the head did not come up:\n{log_path.read_text(encoding='utf-8')}")


def stop(process: subprocess.Popen[bytes], temp_dir: Path) -> None:
    """End the head and what it started, by pid; `ray stop` would end every Ray on the machine.

    Nothing of it is kept, so nothing need be shut down in order, which takes Ray half a minute.
    """
    mine = processes_of(process.pid, temp_dir)
    process.kill()
    process.wait()
    while mine:
        for each in mine:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        psutil.wait_procs(mine, timeout=30)
        mine = processes_of(None, temp_dir)  # started meanwhile


def processes_of(pid: int | None, temp_dir: Path) -> list[psutil.Process]:
    """The children of `pid`, and every process that has this head's own folder in its command line."""
    found = psutil.Process(pid).children(recursive=True) if pid is not None and psutil.pid_exists(pid) else []
    for each in psutil.process_iter(["cmdline"]):
        if any(str(temp_dir) in argument for argument in each.info["cmdline"] or []):
            found.append(each)
    return found


def find_json(result: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    """The JSON objects that verbs print last, found in the log of their job."""
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-3000:]
    return [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]


@pytest.fixture(scope="module")
def overrides(head: Head, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A small corpus of questions, some with pictures, and its run, all in the bucket but for the driver's records."""
    local = tmp_path_factory.mktemp("local")
    things = ["letter", "report", "novel", "contract", "recipe", "speech", "menu", "manual", "diary", "song"]
    rows: list[dict[str, Any]] = [
        {"instruction": f"Please {verb} the {thing} of my {whose}.", "tools": [f"acme/{tool}"], "split": split}
        for tool, verb in TOOLS.items()
        for thing in things
        for whose, split in (("aunt", "train"), ("boss", "train"), ("friend", "val"), ("rival", "test"))
    ]
    for row in rows[::10]:
        row["media"] = f"{row['split']}.png"
    bucket = f"toolmm-{uuid.uuid4().hex[:8]}"
    client = boto3.client("s3", **head.s3)
    client.create_bucket(Bucket=bucket)
    for number, name in enumerate({row["media"]: None for row in rows if "media" in row}):
        picture = io.BytesIO()
        Image.new("RGB", (64, 48), (60 * number, 90, 120)).save(picture, "PNG")
        client.put_object(Bucket=bucket, Key=f"media/{name}", Body=picture.getvalue())
    (local / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (local / "catalog.txt").write_text("".join(f"acme/{name}\n" for name in TOOLS), encoding="utf-8")
    return [
        "name=submitted",
        f"runs_dir=s3://{bucket}/runs",
        "prepare.source=jsonl",
        f"prepare.path={local / 'records.jsonl'}",
        f"prepare.media_root=s3://{bucket}/media",
        "embed.encoder=tiny_imagebind",
        "embed.num_actors=1",
        "model.lora_r=4",
        "train.workers=2",
        "train.epochs=40",
        "train.max_steps=40",
        "train.global_batch_size=16",
        "train.pack_tokens=256",
        "train.checkpoint_every_steps=2",
        "train.validation_questions=6",
    ]


def test_the_job_server_wants_the_token(head: Head) -> None:
    assert request_jobs(head, TOKEN) == 200
    assert request_jobs(head, None) == 401
    assert request_jobs(head, TOKEN[::-1]) in (401, 403)


def test_the_upload_is_small_and_leaves_out_what_no_job_needs(tmp_path: Path) -> None:
    """What Ray packs for `--working-dir .`, measured by its own function."""
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import create_package

    package = tmp_path / "package.zip"
    create_package(str(REPO), package, include_gitignore=True, excludes=get_runtime_env_default_excludes())
    assert 0 < package.stat().st_size < MAX_UPLOAD_BYTES


def test_a_job_gets_the_packages_and_one_thread_per_worker(head: Head) -> None:
    variables = json.dumps({"env_vars": {"PROBE": "1", "TQDM_DISABLE": "0"}})
    (probe,) = find_json(head.submit(["python", "-c", PROBE], "--runtime-env-json", variables))
    files = set(probe["files"])
    assert {"ray_jobs/__main__.py", "ray_jobs/configs/demo.yaml", "serve/serve.yaml", "pyproject.toml"} <= files
    assert {path.split("/")[0] for path in files}.isdisjoint({".venv", ".git", ".ci", "tests", "runs"})
    worker = probe["worker"]
    assert worker["ray_jobs"].startswith(probe["cwd"]), "workers must import what was uploaded"
    assert Path(worker["python"]).parent == BIN
    assert worker["threads"] == 1
    assert worker["env"] == {
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "TQDM_DISABLE": "0",  # what the submission says stands
        "PYTHONWARNINGS": "ignore::FutureWarning,ignore::DeprecationWarning",
        "PROBE": "1",
    }


def test_from_records_to_a_service_with_nothing_shared_but_a_bucket(
    head: Head, overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = overrides[1].removeprefix("runs_dir=")

    def one_job(*verbs: str) -> list[str]:
        """One after the other."""
        return ["bash", "-c", " && ".join(shlex.join(["python", "-m", "ray_jobs", verb, *overrides]) for verb in verbs)]

    (stopped,) = head.submit(one_job("prepare", "embed", "train"), "--no-wait").stdout.split("'")[1:2]
    wait_for_checkpoint(head, runs.removeprefix("s3://").removesuffix("/runs"), stopped)
    assert head.ray("job", "stop", stopped).returncode == 0
    prepared, embedded = find_json(head.ray("job", "logs", stopped))
    assert prepared["counts"]["train"]["questions"] == 60
    assert prepared["rejected"] in ({}, [], 0)
    assert prepared["corpus"].startswith(runs)
    assert embedded["encoded"] == 2

    went_on = head.submit(one_job("train", "export"))
    trained, exported = find_json(went_on)
    (resumed,) = map(int, re.findall(r"resuming at step (\d+) of 40", went_on.stdout))
    assert 0 < resumed < 40
    assert trained["metrics"]["step"] <= 40
    assert trained["best_checkpoint"].startswith(runs)
    losses = MlflowClient(head.env["MLFLOW_TRACKING_URI"]).get_metric_history(trained["mlflow_run_id"], "train/loss")
    assert [loss.step for loss in losses] == list(range(40)), "each step once, where the cluster says that MLflow is"

    assert exported["bundle"].startswith(runs)
    for name, value in head.env.items():
        if name.startswith("AWS_"):
            monkeypatch.setenv(name, value)
    with serving(exported["bundle"], tmp_path / "artifacts") as service:
        body = {"instruction": "Please translate the letter of my uncle.", "k": 3}
        answer = httpx.post(f"{service.url}/v1/tools/select", json=body, timeout=120).raise_for_status().json()
    assert sum(tool["probability"] for tool in answer["tools"]) <= 1 + 1e-6
    assert {tool["tool_id"] for tool in answer["tools"]} <= {
        "acme/translator",
        "acme/summarizer",
        "acme/poet",
        "unknown",
    }


def wait_for_checkpoint(head: Head, bucket: str, job: str, timeout_s: float = 300) -> None:
    """Until the first one of the job's run lies in the bucket."""
    client = boto3.client("s3", **head.s3)
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        keys = [each["Key"] for each in client.list_objects_v2(Bucket=bucket, Prefix="runs/").get("Contents", [])]
        if any("/checkpoints/" in key and key.endswith(".safetensors") for key in keys):
            return
        time.sleep(0.2)
    said = head.ray("job", "logs", job).stdout
    pytest.fail(f"no checkpoint after {timeout_s} s; there are {keys}; the job said {said[-6000:]}")
