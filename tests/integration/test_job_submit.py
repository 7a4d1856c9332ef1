"""`ray job submit --working-dir .` on a head of its own, with token authentication, as on a cluster.

Everything runs in subprocesses with an environment of their own, so a Ray that the other tests use is left alone; only
the processes of this head are ended.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]

REPO = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
TOKEN = "0123456789abcdef" * 4
MAX_UPLOAD_BYTES = 6 * 2**20
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
    """A running head node and what a client needs to talk to it."""

    address: str
    env: dict[str, str]

    def submit(self, entrypoint: list[str], *options: str) -> subprocess.CompletedProcess[str]:
        """Submit from the project's root and wait; the job's log is in stdout."""
        command = [str(BIN / "ray"), "job", "submit", "--address", self.address, "--working-dir", ".", *options]
        return subprocess.run(
            [*command, "--", *entrypoint], cwd=REPO, env=self.env, capture_output=True, text=True, timeout=550
        )


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
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
        "DS_ACCELERATOR": "cpu",
        "HF_HUB_OFFLINE": "1",
    }
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
        head = Head(f"http://127.0.0.1:{ports[1]}", env)
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


def last_json(result: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The JSON object that a verb prints last, found in the log of its job."""
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-3000:]
    lines = [line for line in result.stdout.splitlines() if line.startswith("{")]
    return json.loads(lines[-1])


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A small corpus of text questions, outside the working directory as on shared storage, and the run's overrides."""
    shared = tmp_path_factory.mktemp("shared")
    tools = {"acme/translator": "translate", "acme/summarizer": "summarize", "acme/poet": "write a poem about"}
    things = ["letter", "report", "novel", "contract", "recipe", "speech", "menu", "manual", "diary", "song"]
    rows = [
        {"instruction": f"Please {verb} the {thing} of my {whose}.", "tools": [tool], "split": split}
        for tool, verb in tools.items()
        for thing in things
        for whose, split in (("aunt", "train"), ("boss", "train"), ("friend", "val"), ("rival", "test"))
    ]
    (shared / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (shared / "catalog.txt").write_text("\n".join(tools) + "\n", encoding="utf-8")
    return [
        "name=submitted",
        f"runs_dir={shared / 'runs'}",
        "prepare.source=jsonl",
        f"prepare.path={shared / 'records.jsonl'}",
        "model.lora_r=4",
        "train.workers=2",
        "train.epochs=1",
        "train.max_steps=2",
        "train.global_batch_size=16",
        "train.pack_tokens=256",
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
    probe = last_json(head.submit(["python", "-c", PROBE], "--runtime-env-json", variables))
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


def test_prepare_and_train_as_jobs(head: Head, overrides: list[str]) -> None:
    prepared = last_json(head.submit(["python", "-m", "ray_jobs", "prepare", *overrides]))
    assert prepared["counts"]["train"]["questions"] == 60
    assert prepared["rejected"] in ({}, [], 0)

    trained = last_json(head.submit(["python", "-m", "ray_jobs", "train", *overrides]))
    run_dir = Path(prepared["corpus"]).parent
    summary = json.loads((run_dir / "train.json").read_text(encoding="utf-8"))
    assert trained["metrics"]["step"] == 2
    assert trained["best_checkpoint"] == summary["best_checkpoint"]
    assert Path(summary["best_checkpoint"]).is_relative_to(run_dir)
    assert any(Path(summary["best_checkpoint"]).iterdir())
    assert summary["data_hash"] == prepared["data_hash"]
