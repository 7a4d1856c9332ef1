"""The whole benchmark with a tiny model over Ray Serve; how fast it is, is for an idle machine to say, `make bench`."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.llm.bundle import load_bundle
from serve.bench import job, selection
from tests.integration.small_service import make_bundle, make_encoder


@pytest.mark.ray
@pytest.mark.slow
def test_all_is_measured_in_one_run(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(selection, "N_SELECTIONS", 2)
    bundle = load_bundle(make_bundle(tmp_path / "bundle", tmp_path / "backbone", make_encoder(tmp_path / "encoder")))
    results = job.run(bundle, rounds=2, seconds=0.5)
    assert len(results["goals"]) == 6
    assert results["load"]["http"]["queries_per_s"] > 0
    assert results["load"]["http"]["failed"] == results["load"]["steady"]["failed"] == 0
    assert len(results["selection"]["alone_s"]) == len(results["selection"]["beside_s"]) == 4
    assert results["selection"]["answers"] >= 2
    assert len(results["first_word"]["http"]) == 4
    printed = capsys.readouterr().out
    assert "round 2 of 2" in printed
    assert all(goal["name"] in printed for goal in results["goals"])


def test_the_agent_is_told_something_else_each_time() -> None:
    words = list(job.draw_words())
    assert len(set(words)) == len(words) > 200
    assert len(set(job.draw_questions(64))) > 32
