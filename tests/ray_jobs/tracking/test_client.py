"""What MLflow refuses, in one sentence each; servers are real HTTP servers that answer as given."""

from __future__ import annotations

import errno
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import mlflow
import pytest
import requests
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from data_pipeline.errors import InputError
from ray_jobs.places import make_absolute_uri
from ray_jobs.tracking.client import build_client, default_uri, explained, patiently
from ray_jobs.tracking.runs import RunLogger, open_run

REPO = Path(__file__).resolve().parents[3]


@pytest.fixture
def answering() -> Iterator[tuple[ThreadingHTTPServer, str]]:
    """A server that answers every request with its `status` and `body`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            content: bytes = self.server.body  # pyright: ignore[reportAttributeAccessIssue]
            self.send_response(self.server.status)  # pyright: ignore[reportAttributeAccessIssue]
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server, f"http://me:secret@127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (
            401,
            b"You are not authenticated.",
            "knows nobody of this name and password .*set MLFLOW_TRACKING_USERNAME and",
        ),
        (
            401,
            b'{"error_code": "UNAUTHENTICATED", "message": "no"}',
            "knows nobody .*or MLFLOW_TRACKING_TOKEN, to what",
        ),
        (403, b'{"error_code": "PERMISSION_DENIED", "message": "no"}', "does not let this user in .*PERMISSION_DENIED"),
        (404, b"<html>nothing here</html>", "is no MLflow server: it does not know .*set tracking.uri to one"),
        (400, b'{"error_code": "INVALID_PARAMETER_VALUE", "message": "bad name"}', "MLflow refuses .*bad name"),
        (503, b"busy", "has not answered for 0 s .*start it, or set tracking.uri to one that runs"),
        (200, b"<html>log in</html>", "has not answered for 0 s .*not in a valid JSON format"),
    ],
)
def test_a_server_that_refuses(
    answering: tuple[ThreadingHTTPServer, str],
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    body: bytes,
    message: str,
) -> None:
    """Those that will not change their mind end it at once, whatever the patience."""
    server, uri = answering
    server.status, server.body = status, body  # pyright: ignore[reportAttributeAccessIssue]
    is_final = status in range(400, 500)
    monkeypatch.setattr("ray_jobs.tracking.client.PATIENCE_S", 600.0 if is_final else 0.1)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(InputError, match=message) as caught:
        open_run(uri, "toolmm", "a", "a", {})
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("./mlruns", "'{here}/mlruns' is a folder of files, to which MLflow .* no longer writes; set it to sqlite:///"),
        ("file:mlruns", "'file://{here}/mlruns' is a folder of files"),
        ("htp://host:5000", r"MLflow knows no 'htp' \(did you mean 'http'\?\); it takes http, https, sqlite"),
        ("sqlit:///mlflow.db", r"did you mean 'sqlite'\?"),
        ("postgres://me:secret@host/db", r"'postgres://\*\*\*@host/db'.*did you mean 'postgresql'\?"),
        ("http:/host:5000", "is no address of a server; write it as http://HOST:5000"),
        ("http://host:port", "is no address of a server"),
        (
            "sqlite:///text.db",
            r"text\.db cannot be used \(.*file is not a database\); set tracking.uri to one that can",
        ),
        ("sqlite:////proc/none/mlflow.db", r"nothing can be written there \(No such file or directory\); name a file"),
        ("sqlite:///folder", r"names a folder; name a file in it, as in sqlite:///{here}/folder/mlflow\.db"),
        ("mysql+nosuchdriver://me:secret@host/db", "cannot be used"),
        ("uc", "MLflow refuses what is asked of uc: Detected Unity Catalog"),
    ],
)
def test_a_uri_that_mlflow_cannot_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.db").write_text("no database, but long enough to be looked at as one " * 9, encoding="utf-8")
    with pytest.raises(InputError, match=message.format(here=tmp_path)) as caught:
        open_run(make_absolute_uri(uri), "toolmm", "a", "a", {})
    assert "secret" not in str(caught.value)


def test_a_relative_database_lies_in_the_working_folder_with_its_artifacts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    uri = make_absolute_uri("sqlite:///mlflow.db")
    run_id = open_run(uri, "toolmm", "a", "a", {})
    monkeypatch.chdir("/")  # as a worker
    logger = RunLogger(uri, run_id)
    logger.log_text("hello", "notes.txt")
    logger.finish()
    assert MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").get_run(run_id).info.status == "FINISHED"
    assert len(list((tmp_path / "mlartifacts").rglob("notes.txt"))) == 1


def test_a_database_of_another_version(tmp_path: Path) -> None:
    """In a process of its own: MLflow looks once at each database."""
    uri = f"sqlite:///{tmp_path}/old.db"
    build_client(uri)
    with sqlite3.connect(tmp_path / "old.db") as connection:
        connection.execute("update alembic_version set version_num = '451aebb31d03'")
    code = f"from ray_jobs.tracking.runs import open_run; open_run({uri!r}, 'toolmm', 'a', 'a', {{}})"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, timeout=120, check=False
    )
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith(f"data_pipeline.errors.InputError: the tables of {uri} are not those of MLflow"), last
    assert f"take a backup and run `mlflow db upgrade {uri}`" in last


def test_what_a_caller_may_want_to_know_stays_as_it_is() -> None:
    missing = MlflowException("no such model", error_code=5)  # NOT_FOUND

    def fail() -> None:
        raise missing

    with pytest.raises(MlflowException):
        patiently(fail, "http://host")
    with (
        pytest.raises(InputError, match="MLflow refuses what is asked of http://host: no such model"),
        explained("http://host"),
    ):
        fail()


DOWNLOAD = "The following failures occurred while downloading one or more artifacts from /a:\n##### File x #####\n"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "full", "/from", None, "/to"), "/to: no space left on device; make room there"),
        (PermissionError(errno.EACCES, "no", "/mine"), "/mine: permission denied; give this user the right to it"),
        (OSError(errno.EROFS, "no", "/mine"), "/mine: read-only file system; name a place that can be written to"),
        (MlflowException(f"{DOWNLOAD}[Errno 28] No space left on device: '/a/b'"), "/a/b: no space left on device"),
        (MlflowException(f"{DOWNLOAD}[Errno 28] No space left on device"), "no space left on device; make room"),
        (MlflowException("(sqlite3.OperationalError) database or disk is full"), "the tracking database .* full"),
    ],
)
def test_a_disk_of_this_machine_is_no_outage(error: Exception, message: str) -> None:
    """Said at once: what is to be waited for is a server."""
    n_calls = 0

    def fail() -> None:
        nonlocal n_calls
        n_calls += 1
        raise error

    with pytest.raises(InputError, match=message) as caught:
        patiently(fail, "http://host")
    assert n_calls == 1
    with pytest.raises(InputError, match=message), explained("http://host"):
        fail()
    assert "answered" not in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError(errno.ECONNREFUSED, "refused"),
        PermissionError(errno.EPERM, "a firewall's word"),
        TimeoutError(errno.ETIMEDOUT, "late"),
        requests.ConnectionError("reset"),
        MlflowException("the server's disk: [Errno 28] No space left on device"),
    ],
)
def test_a_network_error_stays_an_outage(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray_jobs.tracking.client.PATIENCE_S", 0.3)
    n_calls = 0

    def fail() -> None:
        nonlocal n_calls
        n_calls += 1
        raise error

    with pytest.raises(InputError, match="has not answered for 0 s"):
        patiently(fail, "http://host")
    assert n_calls > 1


def test_what_is_being_handled_is_not_what_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray_jobs.tracking.client.PATIENCE_S", 0.0)

    def fail() -> None:
        raise MlflowException("away")

    try:
        raise InputError("the corpus is empty.")
    except InputError:
        with pytest.raises(InputError, match="has not answered"):
            patiently(fail, "http://host")


@pytest.mark.parametrize("before", [None, "http://mine:5000"])
def test_a_default_lasts_for_a_block_and_leaves_the_users_variable_alone(
    before: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if before:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", before)
    with default_uri("http://other:5000"):
        assert mlflow.get_tracking_uri() == "http://other:5000"
    assert os.environ.get("MLFLOW_TRACKING_URI") == before
    assert mlflow.tracking.is_tracking_uri_set() == bool(before)
