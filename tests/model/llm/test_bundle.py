"""The bundle: what goes in comes out, plain PEFT reads its adapter, and anything altered is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from random_head import make_head
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from data_pipeline import storage
from data_pipeline.batches.encoding import encode_question
from data_pipeline.errors import InputError
from data_pipeline.records.catalog import Tool, ToolCatalog
from data_pipeline.records.dialogue import DIALOGUE_FORMAT, DIALOGUE_VERSION
from model.decode.tools import Prompt, top_k_tools
from model.decode.trie import ChoiceTrie
from model.llm import bundle as bundle_module
from model.llm import gguf
from model.llm.backbone import read_shape
from model.llm.bundle import Bundle, check_encoder, load_bundle, save_bundle
from model.llm.config import ModelConfig
from model.llm.tool_llm import ToolLLM
from model.tiny.backbone import build_tiny_backbone

ENCODER_DIM = 12
CATALOG = ToolCatalog(
    [Tool("deblur", "Sharpens a blurred picture.", "image", "image", "local"), Tool("dehaze"), Tool("unknown")]
)


def _trained_mllm(backbone: Path, modules_to_save: list[str], **changes: Any) -> ToolLLM:
    """A built model whose every trained parameter differs from its first value."""
    fields = {"lora_r": 2, "lora_alpha": 4, "modules_to_save": modules_to_save} | changes
    config = ModelConfig(backbone=str(backbone), encoder_dim=ENCODER_DIM, **fields)
    mllm = ToolLLM.build(config)
    generator = torch.Generator().manual_seed(3)
    state = mllm.trainable_state_dict()
    mllm.load_trainable_state_dict(
        {name: value + 0.3 * torch.randn(value.shape, generator=generator) for name, value in state.items()}
    )
    return mllm.eval()


def _save(folder: Path, mllm: ToolLLM, **changes: Any) -> None:
    save_bundle(
        folder,
        mllm=mllm,
        catalog=CATALOG,
        encoder_id="tiny-0123",
        encoder_name="tiny",
        model_config=mllm.config,
        data_hash="d" * 64,
        metrics={"acc": 0.5},
        resolved_config={"name": "test"},
        git_revision="abc",
        **changes,
    )


def _prompts(mllm: ToolLLM) -> list[Prompt]:
    vector = np.linspace(-1, 1, ENCODER_DIM, dtype=np.float32)
    return [
        Prompt(encode_question(mllm.tokenizer, "Improve this picture", True, ()).prompt_ids, vector),
        Prompt(encode_question(mllm.tokenizer, "What is it?", False, ()).prompt_ids, None),
    ]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = ["### Human: <Img></Img> Improve this picture\n### Assistant: {'api_name': deblur}\n###"] * 3
    return build_tiny_backbone(
        tmp_path_factory.mktemp("backbone") / "tiny",
        texts,
        vocab_size=300,
        hidden_size=32,
        n_layers=2,
        n_heads=2,
        intermediate_size=48,
        max_positions=256,
    )


@pytest.fixture(scope="module")
def mllm(backbone: Path) -> ToolLLM:
    return _trained_mllm(backbone, ["embed_tokens", "lm_head"])


@pytest.fixture(scope="module")
def saved(mllm: ToolLLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "b"
    _save(folder, mllm)
    return folder


@pytest.fixture
def bundle_dir(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


@pytest.mark.parametrize(
    "changes",
    [
        {"modules_to_save": []},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"modules_to_save": [], "adapter": "dora", "lora_target": "all-linear", "dtype": "bfloat16"},
    ],
)
def test_a_sketch_with_what_was_trained_gives_the_same_bundle(
    backbone: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """So an export needs the memory of what was trained, and none for the backbone."""
    mllm = _trained_mllm(backbone, **changes)
    sketch = ToolLLM.sketch(mllm.config, read_shape(str(backbone)))
    sketch.load_trainable_state_dict(mllm.trainable_state_dict())
    for name, each in (("whole", mllm), ("sketch", sketch)):
        _save(tmp_path / name, each)
    hashes = [load_bundle(tmp_path / name).info.files for name in ("whole", "sketch")]
    assert hashes[0] == hashes[1]
    assert all(value.is_meta for value in sketch.parameters() if not value.requires_grad)


@pytest.mark.parametrize("modules_to_save", [[], ["embed_tokens", "lm_head"]])
def test_round_trip_answers_alike(backbone: Path, tmp_path: Path, modules_to_save: list[str]) -> None:
    mllm = _trained_mllm(backbone, modules_to_save)
    _save(tmp_path / "b", mllm)
    loaded = load_bundle(tmp_path / "b").build_mllm()

    before, after = mllm.trainable_state_dict(), loaded.trainable_state_dict()
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(value, after[name]), name
    trie = ChoiceTrie(CATALOG.tool_ids, mllm.tokenizer)
    assert top_k_tools(loaded, _prompts(mllm), 3, trie) == top_k_tools(mllm, _prompts(mllm), 3, trie)
    assert not loaded.training


def test_an_adapter_of_half_the_size_answers_nearly_alike(backbone: Path, tmp_path: Path) -> None:
    mllm = _trained_mllm(backbone, [])
    _save(tmp_path / "whole", mllm)
    _save(tmp_path / "half", mllm, adapter_dtype="bfloat16")
    whole, half = ((tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("whole", "half"))
    assert half.stat().st_size < 0.75 * whole.stat().st_size, "the file's head weighs here"
    loaded = load_bundle(tmp_path / "half").build_mllm()
    for name, value in mllm.trainable_state_dict().items():
        assert loaded.trainable_state_dict()[name].dtype == value.dtype
        torch.testing.assert_close(loaded.trainable_state_dict()[name], value, rtol=2**-8, atol=0)


def test_a_packaged_backbone_is_named_and_found_on_another_machine(
    backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bundle named the folder of the machine that had trained it, and loaded nowhere else."""
    trained_on = Path(shutil.copytree(backbone, tmp_path / "there" / "smollm2_135m-b179c9523d0e"))
    storage.write_file(trained_on / gguf.ORIGIN_FILE, json.dumps({"sha256": gguf.PACKAGED["smollm2_135m"][3]}))
    monkeypatch.setattr(bundle_module, "MAX_COPIED_BACKBONE_BYTES", 0)
    _save(tmp_path / "b", _trained_mllm(trained_on, []))
    bundle = load_bundle(tmp_path / "b")
    assert (bundle.info.backbone, bundle.info.has_backbone) == ("smollm2_135m", False)
    for path in (tmp_path / "b").rglob("*.json"):
        assert str(tmp_path) not in path.read_text(), path.name
    here = trained_on.rename(tmp_path / "here")
    monkeypatch.setattr(bundle_module, "open_packaged", {"smollm2_135m": here}.__getitem__)
    assert bundle.build_mllm().llm.get_base_model().name_or_path == str(here)


def test_a_wide_head_travels_along(bundle_dir: Path, mllm: ToolLLM, tmp_path: Path) -> None:
    assert load_bundle(bundle_dir).wide is None
    head = make_head(CATALOG.selection_tool_ids, ENCODER_DIM)
    _save(tmp_path / "b", mllm, wide=head)
    bundle = load_bundle(tmp_path / "b")
    assert bundle.wide is not None
    assert (bundle.wide.head.to_bytes(), bundle.wide.weight) == (head.head.to_bytes(), head.weight)
    (tmp_path / "b" / "wide.safetensors").write_bytes(b"another's")
    with pytest.raises(InputError, match=r"wide\.safetensors"):
        load_bundle(tmp_path / "b")


def test_bundle_is_self_contained(bundle_dir: Path, backbone: Path, mllm: ToolLLM) -> None:
    moved = backbone.rename(backbone.with_name("elsewhere"))  # as on a machine that never saw the training run
    try:
        loaded = load_bundle(bundle_dir).build_mllm()
    finally:
        moved.rename(backbone)
    assert torch.equal(loaded.projector.weight, mllm.projector.weight)
    for path in bundle_dir.rglob("*.json"):
        assert str(backbone.parent) not in path.read_text(), f"{path.name} names a folder of the training machine"


@pytest.mark.parametrize("adapter", ["lora", "rslora", "dora"])
@pytest.mark.parametrize("target", ["attention", "all-linear"])
def test_plain_peft_loads_the_adapter_with_equal_logits(
    backbone: Path, tmp_path: Path, adapter: str, target: str
) -> None:
    mllm = _trained_mllm(backbone, ["embed_tokens", "lm_head"], adapter=adapter, lora_target=target)
    bundle_dir = tmp_path / "b"
    _save(bundle_dir, mllm)
    ours = load_bundle(bundle_dir).build_mllm()
    base = AutoModelForCausalLM.from_pretrained(bundle_dir / "backbone")
    plain = PeftModel.from_pretrained(base, str(bundle_dir / "adapter")).eval()
    input_ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        adapted = plain(input_ids).logits
        assert torch.equal(adapted, mllm.llm(input_ids).logits)
        assert torch.equal(adapted, ours.llm(input_ids).logits)
        with plain.disable_adapter():
            assert not torch.allclose(plain(input_ids).logits, adapted), "the adapter must do something"


def test_only_safetensors_json_and_text(bundle_dir: Path) -> None:
    suffixes = {path.suffix for path in bundle_dir.rglob("*") if path.is_file()}
    assert suffixes <= {".json", ".jsonl", ".safetensors", ".jinja", ".txt"}


def test_info_records_where_it_comes_from(saved: Path) -> None:
    bundle = load_bundle(saved)
    assert bundle.catalog.content_hash == CATALOG.content_hash == bundle.info.catalog_hash
    assert (bundle.encoder_id, bundle.encoder_name) == ("tiny-0123", "tiny")
    assert bundle.info.metrics == {"acc": 0.5}
    assert bundle.info.data_hash == "d" * 64
    assert bundle.info.resolved_config == {"name": "test"}
    assert set(bundle.info.files) == {
        path.relative_to(saved).as_posix() for path in saved.rglob("*") if path.is_file()
    } - {"bundle.json"}


@pytest.mark.parametrize(
    "path", ["projector.safetensors", "adapter/adapter_model.safetensors", "adapter/adapter_config.json"]
)
def test_one_changed_byte_is_refused(bundle_dir: Path, path: str) -> None:
    data = bytearray((bundle_dir / path).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle_dir / path).write_bytes(data)
    with pytest.raises(InputError, match=path):
        load_bundle(bundle_dir)


def test_a_missing_file_is_named(bundle_dir: Path) -> None:
    (bundle_dir / "backbone" / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"lacks the file backbone/model\.safetensors"):
        load_bundle(bundle_dir)


def test_a_file_slipped_in_is_refused(bundle_dir: Path) -> None:
    (bundle_dir / "adapter" / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(InputError, match=r"adapter/adapter_model\.bin"):
        load_bundle(bundle_dir)


def test_changed_catalogue_is_refused(bundle_dir: Path) -> None:
    ToolCatalog([*CATALOG, Tool("new-tool")]).save_jsonl(bundle_dir / "catalog.jsonl")
    with pytest.raises(InputError, match=r"catalog\.jsonl was changed .* restore the file, or train on the new"):
        load_bundle(bundle_dir)


def test_changed_catalogue_with_its_hash_is_still_refused(bundle_dir: Path) -> None:
    catalog = bundle_dir / "catalog.jsonl"
    ToolCatalog([*CATALOG, Tool("new-tool")]).save_jsonl(catalog)
    _edit_info(
        bundle_dir,
        lambda info: info["files"].update({"catalog.jsonl": hashlib.sha256(catalog.read_bytes()).hexdigest()}),
    )
    with pytest.raises(InputError, match="not the catalogue that the model was trained on"):
        load_bundle(bundle_dir)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_version": 99}, "trained on prompt 'mllm-tool' version 99"),
        (
            {"dialogue_version": 99},
            "trained on dialogues 'gpt4tools' version 99, this code renders 'gpt4tools' version",
        ),
        ({"dialogue_format": "react"}, "trained on dialogues 'react' version 1"),
        ({"format_version": 2}, "format version 2, this code reads 1"),
        ({"surprise": 1}, "surprise"),
        ({"files": {}}, "lists no proper hash"),
    ],
)
def test_foreign_info_is_refused(bundle_dir: Path, change: dict[str, object], message: str) -> None:
    _edit_info(bundle_dir, lambda info: info.update(change))
    with pytest.raises(InputError, match=message):
        load_bundle(bundle_dir)


def test_a_bundle_says_in_which_words_it_learned_dialogues(bundle_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = load_bundle(bundle_dir).info
    assert (info.dialogue_format, info.dialogue_version) == (DIALOGUE_FORMAT, DIALOGUE_VERSION)
    monkeypatch.setattr("model.llm.bundle.DIALOGUE_VERSION", 2)
    _edit_info(bundle_dir, lambda info: [info.pop(key) for key in ("dialogue_format", "dialogue_version")])
    with pytest.raises(InputError, match="trained on dialogues 'gpt4tools' version 1"):  # older bundles do not say
        load_bundle(bundle_dir)


def test_paths_out_of_the_bundle_are_refused(bundle_dir: Path) -> None:
    _edit_info(bundle_dir, lambda info: info["files"].update({"../secret": "0" * 64}))
    with pytest.raises(InputError, match=r"lists no proper hash for '\.\./secret'"):
        load_bundle(bundle_dir)


def test_no_json_is_refused(bundle_dir: Path) -> None:
    (bundle_dir / "bundle.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        load_bundle(bundle_dir)


def test_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no bundle at"):
        load_bundle(tmp_path)


def test_another_backbone_is_refused(bundle_dir: Path, tmp_path: Path) -> None:
    bundle = load_bundle(bundle_dir)
    other = build_tiny_backbone(
        tmp_path / "other",
        ["some text"] * 3,
        vocab_size=300,
        hidden_size=64,
        n_layers=2,
        n_heads=2,
        intermediate_size=48,
    )
    info = bundle.info.model_copy(
        update={
            "has_backbone": False,
            "backbone": str(other),
            "llm_config": {**bundle.info.llm_config, "backbone": str(other)},
        }
    )
    with pytest.raises(InputError, match="does not fit the backbone"):
        Bundle(bundle.folder, info, bundle.catalog, bundle.revision).build_mllm()


def test_an_incomplete_adapter_is_refused(bundle_dir: Path) -> None:
    path = bundle_dir / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if "lora_A" in name)
    del tensors[name]
    save_file(tensors, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    _edit_info(bundle_dir, lambda info: info["files"].update({"adapter/adapter_model.safetensors": digest}))
    with pytest.raises(InputError, match=r"the adapter lacks .*lora_A"):
        load_bundle(bundle_dir).build_mllm()


def test_another_encoder_is_refused(saved: Path) -> None:
    bundle = load_bundle(saved)
    check_encoder(bundle, "tiny-0123")
    with pytest.raises(InputError, match=r"'tiny-0123', but 'huge-9'"):
        check_encoder(bundle, "huge-9")
    papers = replace(bundle, info=bundle.info.model_copy(update={"encoder_id": "tiny-0123-mllm_tool"}))
    check_encoder(papers, "tiny-0123-robust")
    with pytest.raises(InputError, match=r"'tiny-0123-mllm_tool', but 'tiny-0123-imagebind'"):
        check_encoder(papers, "tiny-0123-imagebind")


def test_saving_replaces_a_bundle_and_nothing_else(bundle_dir: Path, mllm: ToolLLM, tmp_path: Path) -> None:
    (bundle_dir / "projector.safetensors").write_bytes(b"")
    _save(bundle_dir, mllm)
    load_bundle(bundle_dir)
    assert [path.name for path in tmp_path.iterdir()] == [bundle_dir.name], "temporary folders are left"
    foreign = tmp_path / "photos"
    foreign.mkdir()
    (foreign / "a.jpg").write_bytes(b"")
    with pytest.raises(InputError, match="not empty and not a bundle"):
        _save(foreign, mllm)
    assert (foreign / "a.jpg").exists()


def _edit_info(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    info = json.loads((folder / "bundle.json").read_text())
    edit(info)
    (folder / "bundle.json").write_text(json.dumps(info))
