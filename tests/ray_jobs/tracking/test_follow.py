"""The link to the champion: where it points, and that nothing faulty takes its place."""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient

from data_pipeline import storage
from data_pipeline.errors import InputError
from ray_jobs.config import load_run_spec
from ray_jobs.tracking import follow
from ray_jobs.tracking.client import build_client, default_uri
from ray_jobs.tracking.model_versions import ChampionInfo, promote
from ray_jobs.tracking.runs import open_run

NAME = "toolmm"
OTHER = "another model"


class _Registry:
    """MLflow on SQLite; `register` stores a folder with one file, which is all of a bundle that `follow` looks for."""

    def __init__(self, folder: Path) -> None:
        self.uri = f"sqlite:///{folder}/mlflow.db"
        self._folder = folder
        self._client: MlflowClient = build_client(self.uri)
        self._run_id = open_run(self.uri, "follow", "run", "follow", {})
        for name in (NAME, OTHER):
            self._client.create_registered_model(name)

    def register(self, label: str, file: str = "bundle.json", name: str = NAME) -> str:
        folder = self._folder / label / "artifacts" / "bundle"
        folder.mkdir(parents=True)
        (folder / file).write_text(label, encoding="utf-8")
        self._client.log_artifacts(self._run_id, str(self._folder / label), label)
        source = f"{self._client.get_run(self._run_id).info.artifact_uri}/{label}"
        version = str(self._client.create_model_version(name, source, self._run_id).version)
        promote(self.uri, name, version)
        return version


class _Bundle:
    def __init__(self, folder: Path) -> None:
        self.revision = (folder / "bundle.json").read_text(encoding="utf-8")
        if self.revision == "faulty":
            raise InputError("the bundle is faulty.")


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With MLflow's tables, which it takes seconds to make."""
    folder = tmp_path_factory.mktemp("mlflow")
    build_client(f"sqlite:///{folder}/mlflow.db")
    return folder / "mlflow.db"


@pytest.fixture
def registry(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Registry]:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
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


def folders_beside(link: Path) -> dict[str, Path]:
    """By what stands in the bundles there."""
    folders = link.with_name(f"{link.name}-versions").glob("[!.]*/bundle.json")
    return {file.read_text(encoding="utf-8"): file.parent for file in folders}


def test_old_versions_go_but_none_that_may_be_in_use(registry: _Registry, tmp_path: Path) -> None:
    link = tmp_path / "served" / "champion"
    for label in ("one", "two", "three", "four", "five"):
        registry.register(label)
        follow.follow_once(registry.uri, NAME, link)
    folders = folders_beside(link)
    assert folders.keys() == {"one", "two", "three", "four", "five"}, "a service may be loading what was just left"
    notes = link.with_name("champion-versions") / "notes"
    notes.mkdir()
    (link.parent / "pinned").symlink_to(folders["two"])
    long_ago_s = {"one": 1.0, "two": 2.0, "three": 3.0, "four": 4.0, "five": 0.0}
    for label, time_s in long_ago_s.items():
        os.utime(folders[label], (time_s, time_s))
    follow.follow_once(registry.uri, NAME, link)
    assert folders_beside(link).keys() == {"two", "four", "five"}, "pinned by a link, previous, present"
    assert notes.is_dir()
    os.utime(folders["four"], (4.0, 4.0))
    registry.register("six")
    follow.follow_once(registry.uri, NAME, link)
    assert folders_beside(link).keys() == {"two", "five", "six"}, "what the link has left just now is the previous one"


def test_two_models_on_one_link_do_not_mix(registry: _Registry, tmp_path: Path) -> None:
    """Again and again at once: whoever is served has one of them, whole, and both of their first versions stay."""
    link = tmp_path / "champion"
    for name in (NAME, OTHER):
        assert registry.register(f"one of {name}", name=name) == "1"
        follow.follow_once(registry.uri, name, link)
    faults: list[object] = []

    def follow_often(name: str) -> None:
        try:
            for _ in range(5):
                found = follow.follow_once(registry.uri, name, link)
                assert (found["version"], found["revision"]) == ("1", f"one of {name}")
                assert (link / "bundle.json").read_text(encoding="utf-8").startswith("one of ")
        except (AssertionError, OSError, InputError) as error:
            faults.append(error)

    threads = [threading.Thread(target=follow_often, args=[name]) for name in (NAME, OTHER)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert folders_beside(link).keys() == {f"one of {NAME}", f"one of {OTHER}"}
    assert Path(os.path.realpath(link)) in folders_beside(link).values()


def test_versions_of_one_number_of_two_registries_are_two() -> None:
    ours = ChampionInfo("3", "run", "", None, created_ms=1)
    others = [replace(ours, run_id="another"), replace(ours, created_ms=2), replace(ours, version="4")]
    names = {follow.name_folder("../a b", champion) for champion in (ours, *others)}
    assert len(names) == 4
    assert all(re.fullmatch(r"a_b-[34]-[0-9a-f]{12}", name) for name in names)


def test_a_link_that_another_sets_is_told(
    registry: _Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    registry.register("good")
    link = tmp_path / "champion"
    spec = load_run_spec(None, [f"runs_dir={tmp_path}", f"tracking.uri={registry.uri}", "follow.every_s=7"])
    n_sleeps = 0

    def sleep(_: float) -> None:
        nonlocal n_sleeps
        n_sleeps += 1
        if n_sleeps == 3:
            raise KeyboardInterrupt
        if n_sleeps == 2:
            storage.write_link(link, "elsewhere")

    monkeypatch.setattr(follow.time, "sleep", sleep)
    with pytest.raises(KeyboardInterrupt):
        follow.run(spec)
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("another")]
    assert told == [f"another has set the link to {tmp_path}/elsewhere; give each `follow` a follow.link of its own"]
    assert (link / "bundle.json").read_text(encoding="utf-8") == "good"


def test_nothing_of_the_users_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "champion").mkdir()
    with pytest.raises(InputError, match="is there and is no link"):
        follow.run(load_run_spec(None, [f"runs_dir={tmp_path}"]))
