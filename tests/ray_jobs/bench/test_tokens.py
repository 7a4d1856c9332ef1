"""The benchmark of tokenising tokenises the corpus that `prepare` has made, and stops where a command fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline.corpus.files import Corpus
from ray_jobs import prepare
from ray_jobs.bench import tokens
from ray_jobs.bench.prepare import N_TOOLS, write_source
from ray_jobs.config import load_run_spec


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_the_corpus_is_tokenised_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """How much faster two CPUs are is for an idle machine to say, `make bench`."""
    (tmp_path / "catalog.txt").write_text("".join(f"tool/{n}\n" for n in range(N_TOOLS)), encoding="utf-8")
    write_source(tmp_path / "records.jsonl", 120)
    backbone = tokens.build_backbone(tmp_path)
    place = [f"runs_dir={tmp_path}", "name=run", "prepare.source=jsonl", f"prepare.path={tmp_path / 'records.jsonl'}"]
    prepare.run(load_run_spec(None, place))
    monkeypatch.setattr(tokens, "_WARM_UP_S", 0.0)
    found = tokens.measure_tokenizing(tmp_path, str(backbone), 1)
    assert found["questions"] == Corpus.open(tmp_path / "run" / "corpus").manifest["counts"]["train"]["questions"] > 80
    assert found["seconds"] > 0
    assert len(list((tmp_path / "tokens1").glob("*/questions-*.arrow"))) == 1


def test_a_command_that_fails_is_no_measurement() -> None:
    assert "2026" in tokens.run_module("calendar", "2026")
    with pytest.raises(RuntimeError, match="no_such_module failed"):
        tokens.run_module("no_such_module")
