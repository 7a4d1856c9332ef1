"""Registered versions: what they keep, how the champion is chosen among several at once, and where they load."""

from __future__ import annotations

import ast
import importlib.metadata
import subprocess
import sys
import threading
import time
from pathlib import Path

import mlflow
import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from data_pipeline.records.catalog import Tool, ToolCatalog
from model.llm.config import ModelConfig
from model.llm.tool_llm import ToolLLM
from model.tiny.backbone import build_tiny_backbone
from model.tiny.bundle import save_tiny_bundle
from ray_jobs.tracking import model_versions
from ray_jobs.tracking.client import default_uri
from ray_jobs.tracking.model_versions import (
    PACKAGES,
    REQUIRED,
    SCORE_TAG,
    UNDECIDED_TAG,
    ChampionInfo,
    Registered,
    ValidationScore,
    decide_in_turn,
    get_champion,
    promote,
    register_bundle,
)
from ray_jobs.tracking.runs import open_run

REPO = Path(__file__).resolve().parents[3]
SCORE = ValidationScore(0.1 + 0.2, 0.25, 0.35, 512, "f" * 64)


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture
def run_id(uri: str) -> str:
    return open_run(uri, "toolmm", "run", "run", {})


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """Of a registered model that no other test has."""
    return request.node.name


def add_version(uri: str, name: str, run_id: str, score: float) -> str:
    """A version as `register_bundle` leaves it before it is decided on, but without a bundle."""
    client = MlflowClient(uri)
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    tags = ValidationScore(score, 0.0, 1.0, 8, "s").to_tags() | {UNDECIDED_TAG: "yes"}
    return str(client.create_model_version(name, f"/nowhere/{score}", run_id, tags=tags).version)


@pytest.mark.parametrize("better_is", ["first", "second"])
def test_of_two_at_once_the_better_one_is_champion(uri: str, name: str, run_id: str, better_is: str) -> None:
    """The second version comes to its decision long before the first, which has read nothing yet then."""
    promote(uri, name, add_version(uri, name, run_id, 0.5))
    decide_in_turn(uri, name, "1", lambda _: (True, ""))
    scores = (0.7, 0.6) if better_is == "first" else (0.6, 0.7)
    versions = [add_version(uri, name, run_id, score) for score in scores]
    seen: dict[str, list[str]] = {}
    results: dict[str, bool] = {}

    def come(version: str, score: float) -> None:
        def decide(champion: ChampionInfo | None) -> tuple[bool, str]:
            assert champion is not None
            assert champion.score is not None
            seen.setdefault(champion.version, []).append(version)
            time.sleep(0.3)  # in which the other would decide as well
            return score > champion.score.value, ""

        results[version] = decide_in_turn(uri, name, version, decide)[0]

    threads = [threading.Thread(target=come, args=pair) for pair in zip(versions, scores, strict=True)]
    threads[1].start()
    time.sleep(0.2)
    threads[0].start()
    for thread in threads:
        thread.join()
    champion = get_champion(uri, name)
    assert champion is not None
    assert champion.version == versions[better_is == "second"]
    assert seen == {"1": [versions[0]], versions[0]: [versions[1]]}, "each is compared with what the other left"
    assert results == {versions[0]: True, versions[1]: better_is == "second"}


def test_who_is_killed_before_deciding_holds_nobody_up_for_ever(
    uri: str, name: str, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_versions, "TURN_LIMIT_S", 0.1)
    dead, alive = add_version(uri, name, run_id, 0.1), add_version(uri, name, run_id, 0.2)
    assert decide_in_turn(uri, name, alive, lambda champion: (champion is None, "none")) == (True, "none")
    client = MlflowClient(uri)
    assert all(UNDECIDED_TAG not in client.get_model_version(name, version).tags for version in (dead, alive))


def test_a_hand_that_is_faster_is_respected(uri: str, name: str, run_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    by_hand, ours = add_version(uri, name, run_id, 0.1), add_version(uri, name, run_id, 0.2)
    MlflowClient(uri).delete_model_version_tag(name, by_hand, UNDECIDED_TAG)

    def promote_and_lose(*_: str) -> None:
        promote(uri, name, ours)
        promote(uri, name, by_hand)

    monkeypatch.setattr(model_versions, "promote", promote_and_lose)
    is_promoted, why = decide_in_turn(uri, name, ours, lambda _: (True, "better"))
    assert not is_promoted
    assert "by hand in the same moment" in why
    champion = get_champion(uri, name)
    assert champion is not None
    assert champion.version == by_hand


def test_a_version_of_an_earlier_release_has_no_score_to_compare(uri: str, name: str, run_id: str) -> None:
    client = MlflowClient(uri)
    client.create_registered_model(name)
    version = client.create_model_version(name, "/nowhere", run_id, tags={SCORE_TAG: "0.9"}).version
    promote(uri, name, str(version))
    champion = get_champion(uri, name)
    assert champion is not None
    assert champion.score is None


@pytest.mark.slow
def test_a_version_is_promoted_only_when_asked(uri: str, name: str, run_id: str, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "bundle.json").write_text("{}", encoding="utf-8")
    assert get_champion(uri, name) is None, "there is no such model"

    asked: list[ChampionInfo | None] = []

    def refuse(champion: ChampionInfo | None) -> tuple[bool, str]:
        asked.append(champion)
        return False, "not good enough"

    first = register_bundle(uri, run_id, name, bundle, refuse, data_hash="abc", score=SCORE)
    assert first == Registered("1", False, "not good enough")
    assert get_champion(uri, name) is None, "there is no champion"
    promote(uri, name, first.version)
    champion = get_champion(uri, name)
    assert champion is not None
    assert champion == ChampionInfo("1", run_id, "abc", SCORE, champion.created_ms)

    second = register_bundle(uri, run_id, name, bundle, lambda champion: (True, f"beats {champion}"))
    assert asked == [None]
    assert second == Registered("2", True, f"beats {champion}")
    champion = get_champion(uri, name)
    assert champion is not None
    assert champion == ChampionInfo("2", run_id, "", None, champion.created_ms)
    version = MlflowClient(uri).get_model_version(name, "1")
    assert version.aliases == []
    assert version.run_id == run_id
    assert UNDECIDED_TAG not in version.tags
    with pytest.raises(MlflowException, match="99"):
        promote(uri, name, "99")


def import_all(file: Path, read: set[Path]) -> set[str]:
    """Top names of what a file imports, anywhere in it, and what the files of this project do that it imports."""
    if file in read:
        return set()
    read.add(file)
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            found.add(name.partition(".")[0])
            path = REPO.joinpath(*name.split("."))
            for module in (path.with_suffix(".py"), path / "__init__.py"):
                found |= import_all(module, read) if module.is_file() else set()
    return found - sys.stdlib_module_names


def test_a_version_requires_what_its_code_imports_as_it_is_locked() -> None:
    imported = import_all(Path(model_versions.__file__).with_name("pyfunc_model.py"), set())
    assert imported & {"data_pipeline", "model", "ray_jobs", "serve"} == set(PACKAGES)
    packages = importlib.metadata.packages_distributions()
    brought_by = {name: {one.lower() for one in packages[name]} for name in imported - set(PACKAGES)}
    missing = {name for name, distributions in brought_by.items() if not distributions & set(REQUIRED)}
    assert missing == {"pydantic_core"}, "which comes with pydantic"
    assert set(REQUIRED) - set().union(*brought_by.values()) == {"gguf"}, "which transformers imports"
    lock = (REPO / "requirements.lock").read_text(encoding="utf-8").split()
    assert set(model_versions.list_requirements()) <= set(lock)


# In a process that cannot import this project: the package may be installed from where it lies.
ELSEWHERE = """
import importlib.util, sys

sys.path[:] = [one for one in sys.path if one != {repo!r}]
sys.meta_path[:] = [one for one in sys.meta_path if "editable" not in getattr(one, "__module__", "") + repr(one)]
assert not any(importlib.util.find_spec(one) for one in ("data_pipeline", "model", "ray_jobs"))
import mlflow, pandas

mlflow.set_tracking_uri({uri!r})
model = mlflow.pyfunc.load_model("models:/{name}@champion")
answer = model.predict(pandas.DataFrame({{"instruction": ["deblur it"], "modality": ["text"], "media": [None]}}))
import data_pipeline, model.llm.bundle as bundle

assert {repo!r} not in data_pipeline.__path__[0] and {repo!r} not in bundle.__file__
print("tool", answer["tool_id"][0])
"""


@pytest.mark.slow
def test_a_version_loads_where_this_project_is_not(uri: str, name: str, run_id: str, tmp_path: Path) -> None:
    catalog = ToolCatalog([Tool("deblur", "Sharpens a blurred picture."), Tool("unknown")])
    backbone = build_tiny_backbone(tmp_path / "backbone", ["deblur it", "unknown"] * 3, vocab_size=300)
    mllm = ToolLLM.build(ModelConfig(backbone=str(backbone), encoder_dim=8))
    bundle = save_tiny_bundle(tmp_path / "bundle", mllm, catalog)
    register_bundle(uri, run_id, name, bundle.folder, lambda _: (True, ""))
    with default_uri(uri):
        listed = Path(mlflow.pyfunc.get_model_dependencies(f"models:/{name}@champion"))
    assert listed.read_text(encoding="utf-8").split() == model_versions.list_requirements()
    result = subprocess.run(
        [sys.executable, "-I", "-c", ELSEWHERE.format(repo=str(REPO), uri=uri, name=name)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.splitlines()[-1] in ("tool deblur", "tool unknown")
