"""Models from a shape alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline.errors import InputError
from model.llm.config import ModelConfig
from model.llm.gguf import PACKAGED
from model.llm.tool_llm import ToolLLM
from model.tiny.backbone import build_tiny_backbone
from ray_jobs.estimate.shapes import SHAPES, load_shape

# parameters as the models' own papers and cards give them, projector (1024 -> width, with bias) and adapter apart
PUBLISHED = {
    "huggyllama/llama-7b": 6_738_415_616,
    "meta-llama/Llama-2-7b-chat-hf": 6_738_415_616,
    "lmsys/vicuna-13b-v1.5": 13_015_864_320,
    "facebook/opt-13b": 12_853_473_280,
}


@pytest.mark.parametrize("backbone", PUBLISHED)
def test_the_papers_backbones_have_their_published_size(backbone: str) -> None:
    shape, origin = load_shape(backbone)
    assert origin == "the published shape"
    mllm = ToolLLM.sketch(ModelConfig(backbone=backbone, dtype="bfloat16"), shape)
    frozen = sum(parameter.numel() for parameter in mllm.parameters() if not parameter.requires_grad)
    assert frozen == PUBLISHED[backbone]
    width, layers = shape.hidden_size, shape.num_hidden_layers
    trained = sum(parameter.numel() for parameter in mllm.parameters() if parameter.requires_grad)
    assert trained == layers * 4 * 2 * 32 * width + 1025 * width, "LoRA of rank 32 on q, k, v, o, and the projector"
    assert {parameter.device.type for parameter in mllm.parameters()} == {"meta"}


def test_a_shape_is_the_model_that_would_be_built(tmp_path: Path) -> None:
    folder = build_tiny_backbone(tmp_path / "tiny", ["some words to learn from"] * 3, vocab_size=280)
    config = ModelConfig(backbone=str(folder), lora_target="all-linear", modules_to_save=["lm_head"], adapter="dora")
    shape, origin = load_shape(str(folder))
    assert origin == "its config.json"
    expected = {n: (p.shape, p.dtype, p.requires_grad) for n, p in ToolLLM.build(config).named_parameters()}
    found = {n: (p.shape, p.dtype, p.requires_grad) for n, p in ToolLLM.sketch(config, shape).named_parameters()}
    assert found == expected
    unbuilt, _ = load_shape("tiny")
    differing = {key for key, value in unbuilt.to_dict().items() if shape.to_dict().get(key) != value}
    assert "vocab_size" in differing
    assert not differing & {"hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads"}


def test_an_unknown_backbone_names_the_known_ones(tmp_path: Path) -> None:
    for backbone in ("nobody/has-this", str(tmp_path)):
        with pytest.raises(InputError, match=r"shape of backbone .* not known here.* huggyllama/llama-7b"):
            load_shape(backbone)
    assert all("/" in name or name in PACKAGED for name in SHAPES), "hub ids, and what a package carries"
