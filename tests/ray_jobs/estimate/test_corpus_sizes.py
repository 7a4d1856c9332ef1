"""Sizes of the training questions: counted where there is a corpus, assumed where there is none."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from transformers import AutoTokenizer

from data_pipeline import storage
from data_pipeline.batches.encoding import encode_question
from data_pipeline.corpus.files import Corpus
from data_pipeline.records.schema import Modality, ToolRecord
from data_pipeline.sources.toolmm_mini import generate_dialogues
from model.tiny.backbone import build_tiny_backbone
from ray_jobs.config import load_run_spec
from ray_jobs.estimate import corpus_sizes
from ray_jobs.estimate.corpus_sizes import load_corpus_sizes
from ray_jobs.train.inputs import build_plan


def test_tables_of_the_paper_stand_in_for_a_corpus(tmp_path: Path) -> None:
    sizes = load_corpus_sizes(load_run_spec("vicuna_7b", [f"runs_dir={tmp_path}"]))
    index, modalities = sizes.split.index, np.array(sizes.split.modalities)
    rows = {
        modality: int(index.n_rows[modalities == modality].sum()) for modality in ("audio", "video", "image", "text")
    }
    assert rows == {"audio": 2944, "video": 224, "image": 10085, "text": 31280}, "MLLM-Tool, Table 3"
    assert sizes.is_assumed
    assert index.row_tokens.shape == (44533,)


def test_a_corpus_is_counted_with_its_tokenizer_and_guessed_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dialogues, one question with two answers, and one whose medium is absent."""
    records = [record for record in generate_dialogues("test") if record.split == "train"]
    text = "please improve this dark picture for me"
    tools = ("lab/dehaze", "lab/deblur")
    records.append(ToolRecord("q", "mini", Modality.IMAGE, text, tools, "a.png", "abc"))
    records.append(ToolRecord("absent", "mini", Modality.IMAGE, text, tools, "b.png"))
    corpus = SimpleNamespace(path=tmp_path, records=lambda split: iter(records))
    monkeypatch.setattr(Corpus, "open", lambda path: corpus)
    spec = load_run_spec("demo", [f"runs_dir={tmp_path}"])
    storage.write_file(spec.corpus_dir / "manifest.json", "{}")

    guessed = load_corpus_sizes(spec)
    assert guessed.is_assumed
    assert "no tokenizer here" in guessed.origin
    assert len(guessed.split.index) == len(records) - 1
    assert guessed.split.modalities == ["text"] * (len(records) - 2) + ["image"]

    folder = build_tiny_backbone(spec.run_dir / "backbone", [record.instruction for record in records], vocab_size=600)
    counted = load_corpus_sizes(spec)
    assert not counted.is_assumed
    index = counted.split.index
    assert index.n_rows.tolist() == [1] * (len(index) - 1) + [2]
    question = encode_question(AutoTokenizer.from_pretrained(folder), text, True, tools)
    assert (index.n_tokens[-1], counted.loss_tokens[-1]) == (
        len(question.tree.input_ids),
        len(question.tree.loss_target),
    )
    assert counted.split.loss_weight[-1] == sum(len(answer) for answer in question.answers)
    ratio = index.n_tokens.sum() / guessed.split.index.n_tokens.sum()
    assert 0.5 < ratio < 2, "the guess is of the right size even for this small vocabulary"
    limit = int(np.median(index.row_tokens))
    short = load_corpus_sizes(load_run_spec("demo", [f"runs_dir={tmp_path}", f"train.max_dialogue_tokens={limit}"]))
    assert short.split.n_too_long == int((index.row_tokens[:-2] > limit).sum()) > 0


@pytest.mark.parametrize("has_tokenizer", [True, False])
def test_a_large_corpus_is_scaled_from_a_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_tokenizer: bool
) -> None:
    dialogues = [record for record in generate_dialogues("test") if record.split == "train"]
    text = "please improve this dark picture for me"
    tools = ("lab/dehaze", "lab/deblur")
    questions = [ToolRecord(str(n), "mini", Modality.TEXT, f"{n} {text}" + " now" * (n % 9), tools) for n in range(150)]
    records = [*dialogues, *questions]
    corpus = SimpleNamespace(path=tmp_path, records=lambda split: iter(records))
    monkeypatch.setattr(Corpus, "open", lambda path: corpus)
    spec = load_run_spec("demo", [f"runs_dir={tmp_path}"])
    storage.write_file(spec.corpus_dir / "manifest.json", "{}")
    if has_tokenizer:
        build_tiny_backbone(spec.run_dir / "backbone", [record.instruction for record in records], vocab_size=600)
    whole = load_corpus_sizes(spec)
    monkeypatch.setattr(corpus_sizes, "COUNTED_RECORDS", len(records) // 2)
    scaled = load_corpus_sizes(spec)
    assert f"{len(records) // 2:,} of {len(records):,} records, a sample" in scaled.origin
    assert (len(scaled.split.index), scaled.is_assumed) == (len(records), whole.is_assumed)
    index, expected = scaled.split.index, whole.split.index
    assert len(index.row_tokens) == index.total_rows
    longest = np.maximum.reduceat(index.row_tokens, np.cumsum(index.n_rows) - index.n_rows)
    assert (longest <= index.n_tokens + 1).all(), "each question has its own rows; a tree is without the last token"
    for found, of_all in (
        (index.row_tokens.sum(), expected.row_tokens.sum()),
        (index.count_tokens(np.arange(len(index))), expected.count_tokens(np.arange(len(expected)))),
        (scaled.split.loss_weight.sum(), whole.split.loss_weight.sum()),
        (scaled.loss_tokens.sum(), whole.loss_tokens.sum()),
        (scaled.split.is_dialogue.sum(), whole.split.is_dialogue.sum()),
    ):
        assert found == pytest.approx(of_all, rel=0.15)
    assert set(scaled.split.sources) == set(whole.split.sources)
    assert build_plan(spec, scaled.split).total_steps(1) == pytest.approx(
        build_plan(spec, whole.split).total_steps(1), rel=0.1
    )
