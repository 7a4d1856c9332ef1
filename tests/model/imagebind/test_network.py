"""Our ImageBind against the reference's outputs, intermediates and key names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from data_pipeline.errors import InputError
from model.imagebind.network import ImageBind, ImageBindConfig

TOLERANCE = {
    "image": 5e-6,
    "video": 5e-6,
    "audio_unscaled": 5e-6,
    "audio_scaled": 1e-4,
    "text": 5e-5,
    "text_fork": 5e-5,
}
BFLOAT16_TOLERANCE = {"image": 1e-2, "video": 1e-2, "audio_unscaled": 1e-2, "text": 0.4}
SMALL: dict[str, Any] = {
    "kernel_size": (2, 56, 56),
    "out_embed_dim": 8,
    "vision_embed_dim": 8,
    "vision_num_blocks": 1,
    "vision_num_heads": 2,
    "audio_embed_dim": 8,
    "audio_num_blocks": 1,
    "audio_num_heads": 2,
    "modalities": ("vision", "audio"),
}


@pytest.fixture(scope="module")
def net_dir(shared_dir: Path) -> Path:
    return shared_dir / "oracle" / "imagebind_net"


@pytest.fixture(scope="module")
def arguments(net_dir: Path) -> dict[str, Any]:
    return json.loads((net_dir / "config.json").read_text())["constructor_arguments"]


@pytest.fixture(scope="module")
def state(net_dir: Path) -> dict[str, Tensor]:
    return load_file(net_dir / "tiny_state_dict.safetensors")


@pytest.fixture(scope="module")
def inputs(net_dir: Path) -> dict[str, Tensor]:
    with np.load(net_dir / "inputs.npz") as archive:
        arrays = {name: torch.from_numpy(archive[name]) for name in archive.files}
    return {name: array.float() if array.is_floating_point() else array for name, array in arrays.items()}


@pytest.fixture(scope="module")
def outputs(net_dir: Path) -> dict[str, np.ndarray]:
    with np.load(net_dir / "outputs.npz") as archive:
        return {name: archive[name] for name in archive.files}


def build(arguments: dict[str, Any], state: dict[str, Tensor], **changes: Any) -> ImageBind:
    net = ImageBind(ImageBindConfig(**arguments, **changes))
    net.load_reference_state_dict(state)
    return net


def encode(net: ImageBind, name: str, inputs: dict[str, Tensor]) -> np.ndarray:
    modality = name.split("_")[0]
    with torch.no_grad():
        return net.encode(modality, inputs[name if modality == "text" else modality]).numpy()


@pytest.mark.parametrize("name", sorted(TOLERANCE))
def test_outputs_equal_the_reference(
    name: str, arguments: dict[str, Any], state: dict[str, Tensor], inputs: dict[str, Tensor], outputs: dict
) -> None:
    net = build(arguments, state, audio_logit_scale=name == "audio_scaled")
    result = encode(net, name, inputs)
    assert result.dtype == np.float32
    assert result.shape == outputs[name].shape
    assert np.abs(result - outputs[name]).max() <= TOLERANCE[name]


def test_intermediates_equal_the_reference(
    net_dir: Path, arguments: dict[str, Any], state: dict[str, Tensor], inputs: dict[str, Tensor]
) -> None:
    net = build(arguments, state)
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: torch.nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            seen[name] = output
            if name == "trunk":
                seen["tokens"] = args[0]

        return hook

    def watch(tower: str) -> None:
        trunk = net.get_submodule(f"modality_trunks.{tower}")
        trunk.register_forward_hook(keep("trunk"))
        net.get_submodule(f"modality_heads.{tower}").register_forward_hook(keep("head"))
        for number, block in enumerate(trunk.get_submodule("blocks").children()):
            block.register_forward_hook(keep(f"block{number}"))

    for tower in ("vision", "audio", "text"):
        watch(tower)
    compared = 0
    with np.load(net_dir / "intermediates.npz") as golden:
        for modality in ("image", "video", "audio", "text"):
            seen.clear()
            encode(net, modality, inputs)
            for name in (key for key in golden.files if key.startswith(f"{modality}.")):
                part = name.split(".")[1]
                assert part in seen, name
                tolerance = {"tokens": 2e-6, "head": 2e-5}.get(part, 5e-6)
                wanted = golden[name]
                found = seen[part].numpy()[: len(wanted)]
                assert found.shape == wanted.shape, name
                assert np.abs(found - wanted).max() <= tolerance, name
                compared += 1
    assert compared == 17  # everything in the file


def test_bfloat16_stays_near(
    arguments: dict[str, Any], state: dict[str, Tensor], inputs: dict[str, Tensor], outputs: dict
) -> None:
    net = build(arguments, state).to(torch.bfloat16)
    for name, tolerance in BFLOAT16_TOLERANCE.items():
        result = encode(net, name, inputs)
        assert result.dtype == np.float32
        assert np.abs(result - outputs[name]).max() <= tolerance, name


def test_huge_has_the_official_keys_and_shapes(net_dir: Path) -> None:
    rows = [line.split("\t") for line in (net_dir / "imagebind_huge_keys.tsv").read_text().splitlines()[1:]]
    wanted = {
        key: (() if shape == "scalar" else tuple(map(int, shape.split("x"))), kind)
        for key, shape, _, kind in rows
        if key.split(".")[1] in ("vision", "audio", "text")
    }
    with torch.device("meta"):
        net = ImageBind(ImageBindConfig())
    parameters = dict(net.named_parameters())
    found = {
        key: (tuple(value.shape), "parameter" if key in parameters else "buffer")
        for key, value in net.state_dict().items()
    }
    assert found == wanted


def test_meta_model_takes_a_checkpoint(
    arguments: dict[str, Any], state: dict[str, Tensor], inputs: dict[str, Tensor], outputs: dict
) -> None:
    with torch.device("meta"):
        net = ImageBind(ImageBindConfig(**arguments))
    net.load_reference_state_dict(state)
    assert np.abs(encode(net, "image", inputs) - outputs["image"]).max() <= TOLERANCE["image"]


def test_towers_that_are_not_built_are_skipped(
    arguments: dict[str, Any], state: dict[str, Tensor], inputs: dict[str, Tensor], outputs: dict
) -> None:
    net = build(arguments, state, modalities=("audio",))
    assert {key.split(".")[1] for key in net.state_dict()} == {"audio"}
    assert np.abs(encode(net, "audio_unscaled", inputs) - outputs["audio_unscaled"]).max() <= 5e-6
    with pytest.raises(InputError, match="vision tower"):
        net.encode("image", inputs["image"])


def test_missing_unexpected_and_misshapen_keys_are_named(arguments: dict[str, Any], state: dict[str, Tensor]) -> None:
    net = ImageBind(ImageBindConfig(**arguments))
    missing = "modality_trunks.vision.blocks.0.attn.in_proj_weight"
    with pytest.raises(InputError, match=f"missing: {missing}"):
        net.load_reference_state_dict({key: value for key, value in state.items() if key != missing})
    with pytest.raises(InputError, match=r"unexpected: modality_heads\.vision\.9\.weight"):
        net.load_reference_state_dict({**state, "modality_heads.vision.9.weight": torch.zeros(1)})
    with pytest.raises(InputError, match=r"unexpected: epoch"):
        net.load_reference_state_dict({**state, "epoch": torch.zeros(1)})
    with pytest.raises(InputError, match=r"modality_heads\.vision\.0\.bias \(3,\) instead of \(64,\)"):
        net.load_reference_state_dict({**state, "modality_heads.vision.0.bias": torch.zeros(3)})


@pytest.mark.parametrize(
    ("modality", "shape"),
    [
        ("image", (1, 3, 224, 200)),
        ("image", (3, 224, 224)),
        ("video", (1, 3, 2, 224, 224)),
        ("video", (1, 0, 3, 2, 224, 224)),
        ("audio", (1, 3, 128, 204)),
        ("thermal", (1, 1, 224, 224)),
    ],
)
def test_wrong_inputs_are_refused(modality: str, shape: tuple[int, ...]) -> None:
    net = ImageBind(ImageBindConfig(**SMALL))
    with pytest.raises(InputError, match=modality):
        net.encode(modality, torch.zeros(shape))


def test_bad_configs_are_refused() -> None:
    with pytest.raises(InputError, match="depth"):
        ImageBindConfig(modalities=("vision", "depth"))
    with pytest.raises(InputError, match="kernel_size"):
        ImageBindConfig(kernel_size=(2, 15, 15))
    with pytest.raises(InputError, match="audio_num_heads"):
        ImageBindConfig(audio_embed_dim=10, audio_num_heads=3)
    with pytest.raises(TypeError):
        ImageBindConfig(no_such_name=1)  # type: ignore[call-arg]


def test_it_can_be_trained_but_never_leaves_evaluation_mode() -> None:
    torch.manual_seed(0)
    net = ImageBind(ImageBindConfig(**SMALL))
    net.train()
    assert not any(module.training for module in net.modules())
    net.encode("video", torch.randn(2, 2, 3, 2, 224, 224)).sum().backward()
    net.encode("audio", torch.randn(2, 2, 1, 128, 204)).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in net.parameters())


def test_embeddings_do_not_depend_on_the_batch() -> None:
    torch.manual_seed(0)
    net = ImageBind(ImageBindConfig(**SMALL))
    clips = torch.randn(3, 2, 1, 128, 204)
    with torch.no_grad():
        together = net.encode("audio", clips)
        alone = torch.cat([net.encode("audio", clip[None]) for clip in clips])
    assert torch.allclose(together, alone, atol=1e-6)
