"""MLflow's client: built with short waits, called again while its server is away, its refusals said in one sentence."""

from __future__ import annotations

import difflib
import fcntl
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import mlflow
from mlflow.environment_variables import MLFLOW_ALLOW_FILE_STORE, MLFLOW_TRACKING_URI
from mlflow.exceptions import InvalidUrlException, MlflowException
from mlflow.tracking import MlflowClient
from mlflow.tracking.registry import UnsupportedModelRegistryStoreURIException
from mlflow.utils.uri import is_local_uri
from mlflow.version import VERSION
from sqlalchemy.exc import SQLAlchemyError

from data_pipeline.errors import InputError
from ray_jobs.faults import describe_refusal
from ray_jobs.places import hide_secrets

PATIENCE_S = 60.0  # of calls whose answer is needed
# MLflow's own retries would hold a call for minutes; patience is ours (`patiently`, the outbox)
HTTP_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
TRANSIENT = (MlflowException, SQLAlchemyError, OSError)
TRANSIENT_CODES = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "DEADLINE_EXCEEDED")
ABOUT_THE_SERVER = {  # codes that no call of ours can be the reason of
    "UNAUTHENTICATED": "knows nobody of this name and password",
    "PERMISSION_DENIED": "does not let this user in",
    "ENDPOINT_NOT_FOUND": "is no MLflow server: it does not know MLflow's addresses",
}
CREDENTIALS = (
    "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, to what the server knows"
)
DISK_FAULTS = ("database or disk is full", "attempt to write a readonly database")  # SQLite's words
# of the exceptions of its downloads MLflow keeps the words alone
DOWNLOAD_FAULT = re.compile(r"while downloading one or more[\s\S]*?\[Errno (\d+)\] [^:\n]*(?:: '([^'\n]*)')?")
SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")

logging.getLogger("alembic").setLevel(logging.WARNING)
logging.getLogger("mlflow").setLevel(logging.WARNING)
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # a traceback for every lock that it meets
T = TypeVar("T")


def build_client(uri: str) -> MlflowClient:
    """MLflow's client with short waits; settings of the environment win.

    Raises:
        InputError: MLflow cannot use `uri`.
    """
    for key, value in HTTP_SETTINGS.items():
        os.environ.setdefault(key, value)
    database = sqlite_file(uri)
    with explained(uri):
        if database is None:
            return MlflowClient(tracking_uri=uri)
        _check_database(database, uri)
        try:
            database.parent.mkdir(parents=True, exist_ok=True)
            lock = database.with_name(f"{database.name}.lock").open("a")
        except OSError as error:
            raise InputError(
                f"tracking.uri {uri!r}: nothing can be written there ({error.strerror}); name a file where it can."
            ) from error
        with lock:
            # the client makes missing tables, and two at once would get in each other's way
            fcntl.flock(lock, fcntl.LOCK_EX)
            return MlflowClient(tracking_uri=uri)


@contextmanager
def default_uri(uri: str) -> Iterator[None]:
    """MLflow's calls that take no address go to `uri` within the block; then all is as before.

    MLflow tells child processes of its default by MLFLOW_TRACKING_URI, which to us is the user's word.
    """
    variable = os.environ.get(MLFLOW_TRACKING_URI.name)
    before = mlflow.get_tracking_uri() if mlflow.tracking.is_tracking_uri_set() else None
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        # None is what it is where nothing was called, though the variable may be set
        mlflow.set_tracking_uri(None if before == variable else before)  # type: ignore[arg-type]
        if variable is None:
            os.environ.pop(MLFLOW_TRACKING_URI.name, None)
        else:
            os.environ[MLFLOW_TRACKING_URI.name] = variable


def check_uri(uri: str) -> None:
    """Refuse an address that MLflow cannot use at all (InputError); nothing is made for it, and no server is asked."""
    database = sqlite_file(uri)
    if database is None:
        build_client(uri)
    else:
        _check_database(database, uri)


def _check_database(database: Path, uri: str) -> None:
    if database.is_dir():
        raise InputError(f"tracking.uri {uri!r} names a folder; name a file in it, as in {uri.rstrip('/')}/mlflow.db.")


def sqlite_file(uri: str) -> Path | None:
    """The file of a SQLite database; None for any other store."""
    prefix = "sqlite:///"
    return Path(uri.removeprefix(prefix).partition("?")[0]) if uri.startswith(prefix) else None


def patiently(call: Callable[[], T], uri: str) -> T:
    """The result of a call that must be safe to repeat.

    Raises:
        InputError: nothing answers for `PATIENCE_S`, or what answers is no MLflow server or does not let us in, or a
            file of this machine cannot be read or written, as on a full disk.
        MlflowException: anything else that the server refuses.
    """
    deadline_s = time.monotonic() + PATIENCE_S
    pause_s = 0.25
    while True:
        try:
            return call()
        except TRANSIENT as error:
            code = error.error_code if isinstance(error, MlflowException) else TRANSIENT_CODES[0]
            if code in ABOUT_THE_SERVER or isinstance(error, InvalidUrlException):
                raise InputError(_explain(error, uri)) from error
            if (sentence := _describe_local(error, uri)) is not None:
                raise InputError(sentence) from error
            if code not in TRANSIENT_CODES:
                raise
            if time.monotonic() + pause_s > deadline_s:
                raise InputError(
                    f"the tracking server {hide_secrets(uri)} has not answered for {PATIENCE_S:.0f} s "
                    f"({_reason(error)}); start it, or set tracking.uri to one that runs."
                ) from error
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 5.0)


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Let what MLflow or this machine's disk refuses come out as an InputError that says how to mend it."""
    try:
        yield
    except (MlflowException, SQLAlchemyError, ImportError, OSError) as error:
        sentence = _describe_local(error, uri)
        if sentence is None and isinstance(error, OSError):
            raise
        raise InputError(sentence or _explain(error, uri)) from error


def _describe_local(error: Exception, uri: str) -> str | None:
    """One sentence where it is this machine's files that are at fault, whom no patience helps."""
    if any(fault in str(error) for fault in DISK_FAULTS):
        return f"the tracking database {hide_secrets(uri)} cannot be written ({_reason(error)}); mend that there."
    if (found := DOWNLOAD_FAULT.search(str(error))) is not None:
        return describe_refusal(OSError(int(found[1]), os.strerror(int(found[1])), found[2]))
    return describe_refusal(error)


def _explain(error: Exception, uri: str) -> str:
    shown = hide_secrets(uri)
    code = error.error_code if isinstance(error, MlflowException) else ""
    if isinstance(error, UnsupportedModelRegistryStoreURIException):
        scheme = uri.partition(":")[0]
        close = difflib.get_close_matches(scheme.lower(), SCHEMES, n=1, cutoff=0.5)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        return f"tracking.uri {shown!r}: MLflow knows no {scheme!r}{hint}; it takes {', '.join(SCHEMES)}."
    if is_local_uri(uri) and code == "INVALID_PARAMETER_VALUE" and not MLFLOW_ALLOW_FILE_STORE.get():
        return (
            f"tracking.uri {shown!r} is a folder of files, to which MLflow {VERSION} no longer writes; set "
            "it to sqlite:///mlflow.db or to a server, as in http://HOST:5000 (`mlflow migrate-filestore` moves runs)."
        )
    if isinstance(error, InvalidUrlException):
        return f"tracking.uri {shown!r} is no address of a server; write it as http://HOST:5000."
    if code in ABOUT_THE_SERVER:
        mend = "set tracking.uri to one" if code == "ENDPOINT_NOT_FOUND" else CREDENTIALS
        return f"the tracking server {shown} {ABOUT_THE_SERVER[code]} ({_reason(error)}); {mend}."
    if isinstance(error, ImportError):
        return (
            f"tracking.uri {shown!r} needs the Python package {error.name!r}, which is not installed; install it, or "
            "name another driver, as in postgresql+psycopg2://."
        )
    if "database schema" in str(error):
        return (
            f"the tables of {shown} are not those of MLflow {VERSION} ({_reason(error, 90)}); take a backup "
            f"and run `mlflow db upgrade {shown}`, or set tracking.uri to another database."
        )
    if isinstance(error, SQLAlchemyError):
        return f"the tracking database {shown} cannot be used ({_reason(error)}); set tracking.uri to one that can."
    return f"MLflow refuses what is asked of {shown}: {_reason(error)}"


def _reason(error: Exception, max_chars: int = 300) -> str:
    """The beginning of the libraries' own words, on one line."""
    text = str(error).partition("[SQL:")[0].partition("(Background on")[0]
    return hide_secrets(" ".join(text.split()))[:max_chars]
