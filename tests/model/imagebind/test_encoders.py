"""Encoders by name: the shipped one, the official one, a folder; and everything that can be wrong with them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from data_pipeline.errors import InputError
from model.imagebind import encoders
from model.imagebind.encoders import CHECKPOINT_VARIABLE, Encoder, load_encoder, vector_space
from model.imagebind.network import ImageBind, ImageBindConfig

FIELDS: dict[str, Any] = {
    "kernel_size": [2, 56, 56],
    "out_embed_dim": 8,
    "vision_embed_dim": 8,
    "vision_num_blocks": 1,
    "vision_num_heads": 2,
    "audio_embed_dim": 8,
    "audio_num_blocks": 1,
    "audio_num_heads": 2,
    "modalities": ["vision", "audio"],
}


def write_folder(folder: Path, seed: int = 0, dtype: torch.dtype = torch.float16, **extra: Any) -> ImageBind:
    """An encoder folder with random weights; returns the network that it holds."""
    torch.manual_seed(seed)
    net = ImageBind(ImageBindConfig(**FIELDS)).to(dtype)
    folder.mkdir(exist_ok=True)
    save_file(net.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**FIELDS, **extra}))
    return net.float()


def test_a_folder_is_an_encoder(tmp_path: Path) -> None:
    net = write_folder(tmp_path / "my encoder")
    encoder: Encoder = load_encoder(str(tmp_path / "my encoder"))
    digest = hashlib.sha256((tmp_path / "my encoder" / "model.safetensors").read_bytes()).hexdigest()
    assert encoder.encoder_id == f"my_encoder-{digest[:8]}-robust"
    assert (encoder.embed_dim, encoder.recipe) == (8, "robust")
    x = torch.randn(2, 2, 1, 128, 204)
    found = encoder.encode("audio", x)
    assert found.dtype == torch.float32
    assert found.shape == (2, 8)
    assert not found.requires_grad
    with torch.no_grad():
        assert torch.allclose(found, net.encode("audio", x), atol=1e-6)


def test_encoders_are_frozen_and_run_in_bfloat16(tmp_path: Path) -> None:
    net = write_folder(tmp_path)
    encoder = load_encoder(str(tmp_path), dtype=torch.bfloat16)
    assert not any(parameter.requires_grad for parameter in encoder.net.parameters())
    assert {parameter.dtype for parameter in encoder.net.parameters()} == {torch.bfloat16}
    x = torch.randn(3, 3, 224, 224)
    found = encoder.encode("image", x)
    assert found.dtype == torch.float32
    with torch.no_grad():
        assert torch.nn.functional.cosine_similarity(found, net.encode("image", x)).min() > 0.99


def test_the_id_follows_weights_recipe_and_scale(tmp_path: Path) -> None:
    write_folder(tmp_path / "a")
    ids = {load_encoder(str(tmp_path / "a")).encoder_id}
    write_folder(tmp_path / "a", seed=1)
    ids.add(load_encoder(str(tmp_path / "a")).encoder_id)
    write_folder(tmp_path / "a", seed=1, recipe="imagebind")
    encoder = load_encoder(str(tmp_path / "a"))
    assert encoder.recipe == "imagebind"
    ids.add(encoder.encoder_id)
    write_folder(tmp_path / "a", seed=1, recipe="imagebind", audio_logit_scale=True)
    ids.add(load_encoder(str(tmp_path / "a")).encoder_id)
    assert len(ids) == 4


def test_a_config_that_prescribes_no_recipe_takes_the_default(tmp_path: Path) -> None:
    write_folder(tmp_path / "a")
    papers = load_encoder(str(tmp_path / "a"), default_recipe="mllm_tool")
    robust = load_encoder(str(tmp_path / "a"))
    assert (papers.recipe, robust.recipe) == ("mllm_tool", "robust")
    assert papers.encoder_id != robust.encoder_id, "their vectors do not mix in a feature lake"
    assert vector_space(papers.encoder_id) == vector_space(robust.encoder_id), "but one model may read both"
    write_folder(tmp_path / "a", recipe="imagebind")
    other = load_encoder(str(tmp_path / "a"), default_recipe="mllm_tool")
    assert other.recipe == "imagebind"
    assert vector_space(other.encoder_id) != vector_space(papers.encoder_id)
    write_folder(tmp_path / "a", seed=1)
    assert vector_space(load_encoder(str(tmp_path / "a")).encoder_id) != vector_space(papers.encoder_id)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_the_official_checkpoint_comes_from_the_environment(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    net = ImageBind(ImageBindConfig(**FIELDS))
    state = {**net.state_dict(), "modality_trunks.imu.blocks.0.norm_1.bias": torch.zeros(3)}
    path = tmp_path / f"weights.{suffix}"
    torch.save(state, path) if suffix == "pth" else save_file(state, path)
    monkeypatch.setenv(CHECKPOINT_VARIABLE, str(path))
    # The real sizes take gigabytes: this test's stand-in keeps all but the numbers.
    monkeypatch.setattr(encoders, "ImageBindConfig", lambda modalities: ImageBindConfig(**FIELDS))
    encoder = load_encoder("imagebind_huge")
    assert encoder.encoder_id.startswith("imagebind_huge-")
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(encoder.encode("image", x), net.encode("image", x))


def test_absent_weights_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CHECKPOINT_VARIABLE, raising=False)
    with pytest.raises(InputError, match=f"set {CHECKPOINT_VARIABLE}"):
        load_encoder("imagebind_huge")
    monkeypatch.setenv(CHECKPOINT_VARIABLE, str(tmp_path / "absent.pth"))
    with pytest.raises(InputError, match=r"absent\.pth', which is no file"):
        load_encoder("imagebind_huge")
    monkeypatch.setattr(encoders, "WEIGHTS_DIR", tmp_path)
    with pytest.raises(InputError, match=r"make them with `python -m model\.imagebind\.tiny_encoder`"):
        load_encoder("tiny_imagebind")
    with pytest.raises(InputError, match="unknown encoder 'clip'"):
        load_encoder("clip")
    with pytest.raises(InputError, match=r"config\.json does not exist"):
        load_encoder(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"model\.safetensors do not exist"):
        load_encoder(str(tmp_path))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "holds a list"),
        ('{"vision_embed_dims": 8}', "unknown field vision_embed_dims"),
        ('{"recipe": "other"}', "unknown media recipe 'other'"),
        ('{"modalities": ["smell"]}', "smell"),
        ('{"kernel_size": 14}', r"config\.json"),
    ],
)
def test_bad_configs_are_refused(config: str, message: str, tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(InputError, match=message):
        load_encoder(str(tmp_path))


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, vision_num_blocks=2)
    with pytest.raises(InputError, match=r"missing: modality_trunks\.vision\.blocks\.1\."):
        load_encoder(str(tmp_path))


def test_unreadable_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match="cannot be read"):
        load_encoder(str(tmp_path))
    for content, name in ((b"no weights", "noise.pth"), (b"", "empty.pth")):
        (tmp_path / name).write_bytes(content)
        monkeypatch.setenv(CHECKPOINT_VARIABLE, str(tmp_path / name))
        with pytest.raises(InputError, match=name):
            load_encoder("imagebind_huge")


def test_a_checkpoint_with_code_in_it_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return (Path.touch, (tmp_path / "sprung",))  # type: ignore[return-value]

    torch.save({"weight": Trap()}, tmp_path / "trap.pth")
    monkeypatch.setenv(CHECKPOINT_VARIABLE, str(tmp_path / "trap.pth"))
    with pytest.raises(InputError, match="cannot be read"):
        load_encoder("imagebind_huge")
    assert not (tmp_path / "sprung").exists()


def test_the_shipped_encoder_loads_and_encodes() -> None:
    if not (encoders.WEIGHTS_DIR / "tiny_imagebind.safetensors").is_file():
        pytest.skip("tiny_imagebind has not been made yet: python -m model.imagebind.tiny_encoder")
    encoder = load_encoder("tiny_imagebind")
    stored = load_file(encoders.WEIGHTS_DIR / "tiny_imagebind.safetensors")
    assert {value.dtype for value in stored.values() if value.is_floating_point()} == {torch.float16}
    assert {parameter.dtype for parameter in encoder.net.parameters()} == {torch.float32}
    assert encoder.encoder_id.startswith("tiny_imagebind-")
    for modality, shape in (("image", (3, 224, 224)), ("audio", (3, 1, 128, 204)), ("video", (15, 3, 2, 224, 224))):
        vector = encoder.encode(modality, torch.randn(1, *shape))
        assert vector.shape == (1, encoder.embed_dim)
        assert vector.isfinite().all()
