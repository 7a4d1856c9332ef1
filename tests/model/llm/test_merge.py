"""A merged bundle is a plain language model with the adapter's answers, and its embeddings are to be had alone."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from random_bundle import ENCODER_DIM, build_backbone, build_bundle
from transformers import AutoModelForCausalLM, AutoTokenizer

from data_pipeline.batches.encoding import MEDIA_SLOT_ID
from data_pipeline.errors import InputError
from model.llm.merge import main, merge_bundle
from model.llm.prompt_embedding import PromptEmbedding

IDS = [3, 14, 15, 9, 26, 5]


@pytest.mark.parametrize("adapter", ["lora", "dora", "whole"])
def test_a_merged_bundle_answers_as_the_bundle(
    adapter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = {"modules_to_save": ["embed_tokens", "lm_head"]} if adapter == "whole" else {"adapter": adapter}
    backbone = build_backbone(tmp_path / "tiny", "### Human: <Img></Img> Improve this\n")
    bundle = build_bundle(tmp_path / "bundle", backbone, 1, **fields)
    mllm = bundle.build_mllm("cpu", "float32")
    out = tmp_path / "merged"
    monkeypatch.setattr(sys, "argv", ["merge", str(bundle.folder), "--out", str(out)])
    assert main() == 0
    assert f"--served-model-name {bundle.revision}" in capsys.readouterr().out
    merged = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    ids = torch.tensor([IDS])
    with torch.inference_mode():
        expected = mllm.llm(input_ids=ids).logits
        assert torch.allclose(merged(input_ids=ids).logits, expected, atol=1e-4)
        assert not torch.allclose(mllm.llm.unload()(input_ids=ids).logits, expected, atol=1e-2), "it does something"
    assert AutoTokenizer.from_pretrained(out).get_vocab() == mllm.tokenizer.get_vocab()

    media = np.linspace(-1, 1, ENCODER_DIM, dtype=np.float32)
    prompt = np.array([*IDS[:3], MEDIA_SLOT_ID, *IDS[3:]])
    whole = bundle.build_mllm("cpu", "float32")
    with torch.inference_mode():
        (embeds,) = whole.embed_prompt(torch.from_numpy(prompt)[None], torch.from_numpy(media)[None])
    embedding = PromptEmbedding.load(bundle, torch.float32)
    assert torch.equal(embedding.embed(prompt, media), embeds)
    assert torch.equal(embedding.embed_tokens(np.array(IDS[:3])), embeds[:3])
    assert (embedding.n_tokens, embedding.max_positions) == (merged.lm_head.out_features, whole.max_positions)


def test_only_a_merged_models_folder_is_replaced(tmp_path: Path) -> None:
    backbone = build_backbone(tmp_path / "tiny", "### Human: <Img></Img> Improve this\n")
    bundle = build_bundle(tmp_path / "bundle", backbone, 1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("Dear")
    with pytest.raises(InputError, match="no merged model"):
        merge_bundle(bundle, tmp_path / "mine")
    for dtype in ("float32", "bfloat16"):
        merge_bundle(bundle, tmp_path / "out", dtype)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
        assert str(loaded.dtype) == f"torch.{dtype}"
