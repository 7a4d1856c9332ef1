"""Registered versions: registering, comparing and promoting are separate steps."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from ray_jobs.tracking.model_versions import ChampionInfo, get_champion, promote, register_bundle
from ray_jobs.tracking.runs import open_run


@pytest.mark.slow
def test_a_version_is_promoted_only_when_asked(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    run_id = open_run(uri, "toolmm", "run", "run", {})
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "bundle.json").write_text("{}", encoding="utf-8")
    assert get_champion(uri, "tools") is None, "there is no such model"

    first = register_bundle(uri, run_id, "tools", bundle, data_hash="abc", score=0.1 + 0.2, make_champion=False)
    assert get_champion(uri, "tools") is None, "there is no champion"
    promote(uri, "tools", first)
    assert get_champion(uri, "tools") == ChampionInfo(first, run_id, "abc", 0.1 + 0.2)

    second = register_bundle(uri, run_id, "tools", bundle)
    assert second != first
    assert get_champion(uri, "tools") == ChampionInfo(second, run_id, "", None)
    version = MlflowClient(uri).get_model_version("tools", first)
    assert version.aliases == []
    assert version.run_id == run_id
    with pytest.raises(MlflowException, match="99"):
        promote(uri, "tools", "99")
