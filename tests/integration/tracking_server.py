"""A tracking server as a team runs it: `mlflow server` over PostgreSQL, a folder for artifacts, on loopback ports."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

POSTGRES_USER = "toolmm"
START_LIMIT_S = 90.0


def find_postgres() -> Path | None:
    """Folder of initdb and pg_ctl; None where PostgreSQL is not installed."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "pg_ctl").exists()), None)


class Postgres:
    """A database cluster of its own in a temporary folder; as nobody where we are root, which PostgreSQL refuses."""

    def __init__(self, binaries: Path) -> None:
        self._binaries = binaries
        self._folder = Path(tempfile.mkdtemp(prefix="toolmm-postgres-"))
        self._prefix: list[str] = []
        if os.geteuid() == 0:
            shutil.chown(self._folder, "nobody")
            self._prefix = ["runuser", "-u", "nobody", "--"]
        self.port = find_free_port()
        self._call("initdb", ["-A", "trust", "-U", POSTGRES_USER, "--no-sync", "--encoding=UTF8"])
        options = f"-p {self.port} -k {self._folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        self._call("pg_ctl", ["-w", "-l", str(self._folder / "log"), "-o", options, "start"])

    @property
    def uri(self) -> str:
        return f"postgresql+psycopg2://{POSTGRES_USER}@127.0.0.1:{self.port}/postgres"

    def stop(self) -> None:
        self._call("pg_ctl", ["-m", "immediate", "stop"])
        shutil.rmtree(self._folder)

    def _call(self, program: str, arguments: Sequence[str]) -> None:
        command = [*self._prefix, str(self._binaries / program), "-D", str(self._folder / "data"), *arguments]
        with tempfile.TemporaryFile() as output:  # not a pipe: the server would keep it open
            result = subprocess.run(command, cwd="/", stdout=output, stderr=output, check=False, timeout=120)
            output.seek(0)
            assert result.returncode == 0, output.read().decode()


class TrackingServer:
    """`mlflow server`; it can be killed and started again on the same port."""

    def __init__(self, postgres_uri: str, artifacts: Path) -> None:
        self.artifacts = artifacts
        self.port = find_free_port()
        self._command = [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)),
            *("--workers", "1", "--backend-store-uri", postgres_uri),
            *("--serve-artifacts", "--artifacts-destination", str(artifacts)),
        ]
        self._log = artifacts.parent / "mlflow-server.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Returns when it answers."""
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # starts seconds sooner
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        deadline_s = time.monotonic() + START_LIMIT_S
        while not self._answers():
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline_s, self._log.read_text()
            time.sleep(0.1)

    def kill(self) -> None:
        """SIGKILL to the server and its workers, as when a machine dies."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                return True
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False


def find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
