"""The link to the champion: where it points, and that nothing faulty takes its place."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from data_pipeline.errors import InputError
from ray_jobs.config import load_run_spec
from ray_jobs.tracking import follow
from ray_jobs.tracking.client import build_client, default_uri
from ray_jobs.tracking.model_versions import promote
from ray_jobs.tracking.runs import open_run

NAME = "toolmm"


class _Registry:
    """MLflow on SQLite; `register` stores a folder with one file, which is all of a bundle that `follow` looks for."""

    def __init__(self, folder: Path) -> None:
        self.uri = f"sqlite:///{folder}/mlflow.db"
        self._folder = folder
        self._client: MlflowClient = build_client(self.uri)
        self._run_id = open_run(self.uri, "follow", "run", "follow", {})
        self._client.create_registered_model(NAME)

    def register(self, label: str, file: str = "bundle.json") -> str:
        folder = self._folder / label / "artifacts" / "bundle"
        folder.mkdir(parents=True)
        (folder / file).write_text(label, encoding="utf-8")
        self._client.log_artifacts(self._run_id, str(self._folder / label), label)
        source = f"{self._client.get_run(self._run_id).info.artifact_uri}/{label}"
        version = str(self._client.create_model_version(NAME, source, self._run_id).version)
        promote(self.uri, NAME, version)
        return version


class _Bundle:
    def __init__(self, folder: Path) -> None:
        self.revision = (folder / "bundle.json").read_text(encoding="utf-8")
        if self.revision == "faulty":
            raise InputError("the bundle is faulty.")


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Registry]:
    monkeypatch.chdir(tmp_path)  # MLflow puts artifacts into ./mlruns
    monkeypatch.setattr(follow, "load_bundle", _Bundle)
    with default_uri(f"sqlite:///{tmp_path}/another.db"):  # what this process used before must not matter
        yield _Registry(tmp_path)


def test_the_link_follows_the_champion(registry: _Registry, tmp_path: Path) -> None:
    link = tmp_path / "served" / "champion"
    first = registry.register("one")
    assert follow.follow_once(registry.uri, NAME, link) == {
        "link": str(link),
        "version": first,
        "revision": "one",
        "is_new": True,
    }
    assert (link / "bundle.json").read_text(encoding="utf-8") == "one"
    assert not os.path.isabs(os.readlink(link))
    assert not follow.follow_once(registry.uri, NAME, link)["is_new"]

    second = registry.register("two")
    assert follow.follow_once(registry.uri, NAME, link)["version"] == second
    assert (link / "bundle.json").read_text(encoding="utf-8") == "two"
    promote(registry.uri, NAME, first)
    assert follow.follow_once(registry.uri, NAME, link)["revision"] == "one", "back to an older one"


def test_a_faulty_champion_leaves_the_link(registry: _Registry, tmp_path: Path) -> None:
    link = tmp_path / "champion"
    with pytest.raises(InputError, match="has no version with the alias 'champion'"):
        follow.follow_once(registry.uri, NAME, link)
    registry.register("good")
    follow.follow_once(registry.uri, NAME, link)
    registry.register("faulty")
    with pytest.raises(InputError, match="is faulty"):
        follow.follow_once(registry.uri, NAME, link)
    registry.register("another", file="model.txt")
    with pytest.raises(InputError, match="holds 0 bundles"):
        follow.follow_once(registry.uri, NAME, link)
    assert (link / "bundle.json").read_text(encoding="utf-8") == "good"


def test_watching_goes_on_past_a_fault(
    registry: _Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = load_run_spec(None, [f"runs_dir={tmp_path}", f"tracking.uri={registry.uri}", "follow.every_s=7"])
    events = iter([lambda: registry.register("good"), lambda: registry.register("faulty"), None])

    def sleep(seconds: float) -> None:
        assert seconds == 7
        event = next(events)
        if event is None:
            raise KeyboardInterrupt
        event()

    monkeypatch.setattr(follow.time, "sleep", sleep)
    with pytest.raises(KeyboardInterrupt):
        follow.run(spec)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "the link stays",
        "champion          version 1, revision good",
        "the link stays",
    ]
    assert (tmp_path / "champion" / "bundle.json").is_file()


def test_nothing_of_the_users_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "champion").mkdir()
    with pytest.raises(InputError, match="is there and is no link"):
        follow.run(load_run_spec(None, [f"runs_dir={tmp_path}"]))
