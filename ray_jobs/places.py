"""Paths and tracking URIs as people write them, made into what every process of a run understands.

Workers have other working directories and other homes than the driver, so this is done once, when a config is read.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from data_pipeline.errors import InputError

_HOST_AND_PORT = re.compile(r"(\[[0-9a-fA-F:]+\]|[A-Za-z0-9._-]+):\d{1,5}(/.*)?")
_SQLITE = re.compile(r"sqlite(?:\+\w+)?:(/*)([^?]*)(\?.*)?", re.IGNORECASE)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
_URI = re.compile(r"(?P<start>(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*):/*)(?P<rest>\S+)")
_OF_PATHS = ("sqlite", "file", "models", "runs")  # schemes without a user: an @ there is a file's or an alias's
_SECRET = re.compile(r"([?&;#][^=&;?#\s]*(?:pass|pwd|token|secret|key|cred|sig|auth|connect)[^=&;?#\s]*=)[^&\s]+", re.I)
_HIDDEN = "***"
_NAMES = ("databricks", "databricks-uc", "uc")  # that MLflow takes for URIs


def expand_path(text: str, key: str) -> str:
    """`~` and `$VARIABLE` as a shell expands them.

    Args:
        text: a path.
        key: of the config, for messages.

    Raises:
        InputError: a variable that is not set, or a user that there is not.
    """
    expanded = os.path.expandvars(text)
    unset = re.search(r"\$(\w+|\{[^}]*\})", expanded)
    if unset:
        raise InputError(f"{key} = {text!r}: the environment variable {unset[0][1:].strip('{}')!r} is not set.")
    expanded = os.path.expanduser(expanded)
    if expanded.startswith("~"):
        raise InputError(f"{key} = {text!r}: there is no such user; a name that begins so needs its whole path.")
    return expanded


def make_absolute_uri(uri: str) -> str:
    """The tracking URI that means everywhere what `uri` means to MLflow's own command here.

    `host:port` is a server; SQLite files and folders are relative to the working directory.

    Raises:
        InputError: a SQLite URI without a file.
    """
    if _HOST_AND_PORT.fullmatch(uri):
        return f"http://{uri}"
    sqlite = _SQLITE.fullmatch(uri)
    if sqlite:
        slashes, file, query = sqlite[1], sqlite[2], sqlite[3] or ""
        if len(slashes) < 3 or file in ("", ":memory:"):
            raise InputError(
                f"tracking.uri = {uri!r} names no database file; write sqlite:///mlflow.db for one in the working "
                "folder, or sqlite:////data/mlflow.db with its whole path."
            )
        return f"sqlite:///{_absolute(slashes[3:] + file)}{query}"
    if uri.startswith("file:"):
        return Path(_absolute(re.sub(r"^file:(//(?=/))?", "", uri))).as_uri()
    return uri if _SCHEME.match(uri) or uri in _NAMES else _absolute(uri)


def _absolute(path: str) -> str:
    return os.path.abspath(expand_path(path, "tracking.uri"))


def hide_secrets(text: str) -> str:
    """URIs without their user and password, which may hold any sign but a space, and without secrets of their queries.

    Rather too much is hidden than too little: where a server's path holds an @, all that stands before it.
    """
    return _SECRET.sub(rf"\1{_HIDDEN}", _URI.sub(_hide_user, text))


def _hide_user(found: re.Match[str]) -> str:
    start, rest = found["start"], found["rest"]
    if found["scheme"].lower() in _OF_PATHS:
        return start + _URI.sub(_hide_user, rest)
    before, at, after = rest.rpartition("@")
    if at and _SECRET.search(before):  # whether the @ ends a user's password or is part of the query's, nobody can tell
        return start + _HIDDEN
    return f"{start}{_HIDDEN}@{after}" if at else start + rest
