"""A Ray head of its own, with token authentication, to which jobs are submitted as to a cluster.

Everything runs in subprocesses with an environment of their own, so a Ray that the other tests use is left alone; only
the processes of this head are ended.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

REPO = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
TOKEN = "0123456789abcdef" * 4


@dataclass(frozen=True)
class Head:
    """A running head node and what a client needs to talk to it."""

    address: str
    env: dict[str, str]

    def submit(self, entrypoint: list[str], *options: str) -> subprocess.CompletedProcess[str]:
        """Submit from the project's root and wait; the job's log is in stdout."""
        return self.ray("job", "submit", "--working-dir", ".", *options, "--", *entrypoint)

    def ray(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A command of Ray's about jobs."""
        command = [str(BIN / "ray"), *words[:2], "--address", self.address, *words[2:]]
        return subprocess.run(command, cwd=REPO, env=self.env, capture_output=True, text=True, timeout=550)


@contextmanager
def start_head(home: Path, more_env: Mapping[str, str]) -> Iterator[Head]:
    """A head with eight logical CPUs, for as long as the block lasts.

    Args:
        home: the home of its user; MLflow's database is there.
        more_env: for the head and its clients.

    Raises:
        RuntimeError: it did not come up.
    """
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
        "MLFLOW_TRACKING_URI": f"sqlite:///{home}/mlflow.db",  # on the head's disk
        **more_env,
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
    raise RuntimeError(f"the head did not come up:\n{log_path.read_text(encoding='utf-8')}")


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
