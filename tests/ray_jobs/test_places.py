"""Paths and tracking URIs as people write them."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from data_pipeline.errors import InputError
from ray_jobs.places import expand_path, hide_secrets, make_absolute_uri


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


def test_no_part_of_a_password_is_shown_whatever_stands_in_it() -> None:
    """Of every password made of two words and a sign, in every place of every kind of URI, neither word is shown."""
    signs = "@/:?#&=%;+$!,~'|\\[]"
    schemes = ("http", "https", "postgresql+psycopg2", "mysql", "mssql+pyodbc", "htp")
    places = ("{0}://me:{1}@host", "{0}://{1}@host:5000/path", "{0}:/me:{1}@host", "{0}://me:{1}@host/db?a=1&token=x")
    in_queries = ("{0}://host/db?password={1}", "{0}://host/db?a=1&api_key={1}", "{0}://me:word@host?access_token={1}")
    frames = ("{}", "tracking.uri '{}': no", "sqlite:///mlflow.db,{} and {}", '{{"uri":"{}"}}', "uri={}")
    for scheme, sign, place, frame in product(schemes, signs, places, frames):
        uri = place.format(scheme, f"hush{sign}quiet{sign}mum")
        shown = hide_secrets(frame.format(uri, uri))
        assert not any(word in shown for word in ("hush", "quiet", "mum")), (frame.format(uri, uri), shown)
        assert shown.count("***") >= frame.count("{}")
        assert f"{scheme}:/" in shown
    for scheme, sign, place, frame in product(schemes, set(signs) - {"&"}, in_queries, frames):  # & ends a value
        uri = place.format(scheme, f"hush{sign}quiet")
        shown = hide_secrets(frame.format(uri, uri))
        assert not any(word in shown for word in ("hush", "quiet", "word@")), (frame.format(uri, uri), shown)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:secret@host:5000/path", "http://***@host:5000/path"),
        ("http://host:5000", "http://host:5000"),
        ("me:secret@host:5000 is no address", "me:***@host:5000 is no address"),
        (
            "postgresql://host/db?user=me&password=secret&sslmode=require",
            "postgresql://host/db?user=me&password=***&sslmode=require",
        ),
        ("postgresql://host/db?password=sec@ret", "postgresql://***"),
        ("sqlite:////tmp/a@b.db?timeout=9", "sqlite:////tmp/a@b.db?timeout=9"),
        ("sqlite:////tmp/a.db?key=se@cret", "sqlite:////tmp/a.db?key=***"),
        ("mssql+pyodbc:///?odbc_connect=PWD%3Dsecret", "mssql+pyodbc:///?odbc_connect=***"),
        ("models:/toolmm@champion of file:///a@b", "models:/toolmm@champion of file:///a@b"),
        ("write to me@host at 12:30", "write to me@host at 12:30"),
    ],
)
def test_what_is_hidden_and_what_is_shown(text: str, shown: str) -> None:
    assert hide_secrets(text) == shown
    assert hide_secrets(shown) == shown
