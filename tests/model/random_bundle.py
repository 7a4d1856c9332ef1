"""Bundles over a tiny backbone whose every trained value is random."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from data_pipeline.records.catalog import Tool, ToolCatalog
from model.llm.bundle import Bundle
from model.llm.config import ModelConfig
from model.llm.tool_llm import ToolLLM
from model.tiny.backbone import build_tiny_backbone
from model.tiny.bundle import save_tiny_bundle

ENCODER_DIM = 6
CATALOG = ToolCatalog([Tool("deblur"), Tool("dehaze"), Tool("detect-edges"), Tool("unknown")])


def build_backbone(folder: Path, words: str) -> Path:
    sizes = {"vocab_size": 300, "hidden_size": 32, "n_layers": 2, "n_heads": 2, "intermediate_size": 48}
    return build_tiny_backbone(folder, [words] * 3, **sizes, max_positions=256)


def build_bundle(
    folder: Path, backbone: Path, seed: int, encoder_id: str = "tiny-1", catalog: ToolCatalog = CATALOG, **fields: Any
) -> Bundle:
    """`fields` are those of `ModelConfig`."""
    config = ModelConfig(backbone=str(backbone), encoder_dim=ENCODER_DIM, lora_alpha=8, **fields)
    mllm = ToolLLM.build(config)
    generator = torch.Generator().manual_seed(seed)
    mllm.load_trainable_state_dict(
        {name: torch.randn(value.shape, generator=generator) for name, value in mllm.trainable_state_dict().items()}
    )
    return save_tiny_bundle(folder, mllm, catalog, encoder_id, "tiny")
