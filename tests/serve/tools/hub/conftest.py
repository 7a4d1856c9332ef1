"""Tiny random parts of CLIP, which several tools' models have inside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPSegProcessor,
    CLIPTextConfig,
    CLIPTokenizer,
    ViTImageProcessorPil,
)

TINY = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="session")
def tokenizer() -> CLIPTokenizer:
    """It spells."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[], model_max_length=16)


@pytest.fixture(scope="session")
def text_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    """Of an encoder of texts."""
    return CLIPTextConfig(vocab_size=len(tokenizer), max_position_embeddings=16, projection_dim=8,
                          bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, **TINY)  # fmt: skip


@pytest.fixture(scope="session")
def clipseg(tmp_path_factory: pytest.TempPathFactory, tokenizer: CLIPTokenizer, text_config: Any) -> Path:
    """Folder of a CLIPSeg that marks everything."""
    folder = tmp_path_factory.mktemp("clipseg")
    config = CLIPSegConfig(
        text_config=text_config.to_dict(), vision_config={"image_size": 16, "patch_size": 8, **TINY},
        projection_dim=8, reduce_dim=8, extract_layers=[0], decoder_num_attention_heads=2, decoder_intermediate_size=8,
    )  # fmt: skip
    model = CLIPSegForImageSegmentation(config)
    with torch.no_grad():
        model.decoder.transposed_convolution.bias.fill_(50.0)
    model.save_pretrained(folder)
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16})
    CLIPSegProcessor(image_processor=processor, tokenizer=tokenizer).save_pretrained(folder)
    return folder
