"""The head of a training: fitted once for the same data, and said to be gone where it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_pipeline.corpus.files import Corpus
from data_pipeline.errors import InputError
from ray_jobs import prepare
from ray_jobs.config import RunSpec, load_run_spec
from ray_jobs.train import wide
from ray_jobs.train.wide import read_wide, train_wide


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunSpec, Corpus]:
    folder = tmp_path_factory.mktemp("wide")
    nouns = ("letter", "poem", "note", "card", "map", "page", "book", "leaf")
    asked = [(verb, f"please {verb} the {noun}") for verb in ("cut", "glue", "fold") for noun in nouns]
    rows = "".join(json.dumps({"instruction": words, "tools": [verb]}) + "\n" for verb, words in asked)
    (folder / "records.jsonl").write_text(rows, encoding="utf-8")
    (folder / "catalog.txt").write_text("cut\nglue\nfold\n", encoding="utf-8")
    spec = load_run_spec(None, [f"runs_dir={folder}", "prepare.source=jsonl", f"prepare.path={folder}/records.jsonl"])
    prepare.run(spec)
    return spec, Corpus.open(spec.corpus_dir)


def test_the_same_data_are_fitted_once(
    corpus: tuple[RunSpec, Corpus], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec, data = corpus
    path = train_wide(spec, data)
    assert "wide head         of " in capsys.readouterr().out
    head = read_wide(str(path))
    assert head is not None
    [log_p] = head.log_probabilities(["please glue the letter"], [None])
    assert head.tool_ids[log_p.argmax()] == "glue"
    with monkeypatch.context() as patch:
        patch.setattr(wide, "fit_wide", None)  # it would be called
        assert train_wide(spec, data) == path
    assert f"found in {path}" in capsys.readouterr().out
    assert train_wide(spec.model_copy(update={"seed": 7}), data) != path


def test_a_large_corpus_is_sampled_and_that_is_said(
    corpus: tuple[RunSpec, Corpus], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec, data = corpus
    monkeypatch.setattr(wide, "MAX_QUESTIONS", 6)
    train_wide(spec.model_copy(update={"seed": 8}), data)
    assert "of 6 questions of " in capsys.readouterr().out


def test_no_head_is_none_and_one_that_is_gone_is_told(tmp_path: Path) -> None:
    assert read_wide("") is None
    with pytest.raises(InputError, match="is gone; run `train` again"):
        read_wide(str(tmp_path / "wide.safetensors"))
