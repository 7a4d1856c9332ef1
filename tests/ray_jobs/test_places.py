"""Paths and tracking URIs as people write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline.errors import InputError
from ray_jobs.places import expand_path, make_absolute_uri


@pytest.mark.parametrize(
    ("uri", "absolute"),
    [
        ("sqlite:///mlflow.db", "sqlite:///{here}/mlflow.db"),
        ("sqlite:///db/../mlflow.db?timeout=9", "sqlite:///{here}/mlflow.db?timeout=9"),
        ("sqlite+pysqlite:///mlflow.db", "sqlite:///{here}/mlflow.db"),
        ("SQLite:////data/mlflow.db", "sqlite:////data/mlflow.db"),
        ("localhost:5000", "http://localhost:5000"),
        ("127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("[::1]:5000/mlflow", "http://[::1]:5000/mlflow"),
        ("./mlruns", "{here}/mlruns"),
        ("mlruns", "{here}/mlruns"),
        ("file:mlruns", "file://{here}/mlruns"),
        ("file:./mlruns", "file://{here}/mlruns"),
        ("file:/data/mlruns", "file:///data/mlruns"),
        ("file:///data/mlruns", "file:///data/mlruns"),
        ("http://me:pa$word@host:5000", "http://me:pa$word@host:5000"),
        ("postgresql://me:~@host/db", "postgresql://me:~@host/db"),
        ("databricks", "databricks"),
        ("databricks://profile", "databricks://profile"),
        ("htp://host:5000", "htp://host:5000"),
    ],
)
def test_a_tracking_uri_means_the_same_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, absolute: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert make_absolute_uri(uri) == absolute.format(here=tmp_path)
    assert make_absolute_uri(make_absolute_uri(uri)) == make_absolute_uri(uri)


@pytest.mark.parametrize(
    "uri", ["sqlite:mlflow.db", "sqlite://mlflow.db", "sqlite:///", "sqlite://", "sqlite:///:memory:"]
)
def test_a_database_needs_a_file(uri: str) -> None:
    with pytest.raises(InputError, match=r"names no database file; write sqlite:///mlflow\.db"):
        make_absolute_uri(uri)


def test_what_cannot_be_expanded() -> None:
    with pytest.raises(InputError, match=r"runs_dir = '\$\{NOPE\}/x': the environment variable 'NOPE' is not set"):
        expand_path("${NOPE}/x", "runs_dir")
    with pytest.raises(
        InputError,
        match=r"runs_dir = '~nobody-there/x': there is no such user; a name that begins so needs its whole path",
    ):
        expand_path("~nobody-there/x", "runs_dir")
    assert expand_path("a$", "runs_dir") == "a$"
