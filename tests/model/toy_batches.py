"""A toy model and toy questions, shared by the tests of the multimodal LLM and by their second processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_pipeline.batches.encoding import EncodedQuestion, encode_question
from data_pipeline.batches.packing import build_micro_batch
from data_pipeline.batches.steps import PlanIndex, deal_step, deal_step_rows
from data_pipeline.records.prompts import render_target
from model.llm.config import ModelConfig
from model.llm.tool_llm import ToolLLM, to_tensors
from model.tiny.backbone import build_tiny_backbone

ENCODER_DIM = 12
TOOLS = (
    "lab/blur-remover",
    "lab/blur-finder",
    "lab/dehaze",
    "sound/pitch",
    "sound/pitch-shift",
    "unknown",
    "t5",
    "t5-base",
)
WORDS = ("improve", "this", "picture", "what", "is", "the", "sound", "of", "my", "video", "please", "now")


def toy_texts() -> list[str]:
    return [" ".join(WORDS), *map(render_target, TOOLS)] * 3


def build_toy_backbone(folder: Path) -> Path:
    return build_tiny_backbone(
        folder,
        toy_texts(),
        vocab_size=320,
        hidden_size=32,
        n_layers=2,
        n_heads=4,
        intermediate_size=48,
        max_positions=512,
    )


def build_toy_mllm(backbone: Path, **changes: Any) -> ToolLLM:
    """A model whose answers depend on what each token sees.

    A fresh adapter's B is zero, which would hide the gradient of A. Fresh attention is all but uniform and a fresh head
    all but indifferent, so that a wrong mask would hardly change the loss: their weights are made larger.
    """
    fields: dict[str, Any] = {
        "lora_r": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.0,
        "modules_to_save": ["embed_tokens", "lm_head"],
    }
    mllm = ToolLLM.build(
        ModelConfig(backbone=str(backbone), encoder_dim=ENCODER_DIM, attention="sdpa", **fields | changes)
    )
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in mllm.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=generator)
            elif ("q_proj" in name or "k_proj" in name) and "base_layer.weight" in name:
                parameter.mul_(15)
            elif ("v_proj" in name or "o_proj" in name) and "base_layer.weight" in name:
                parameter.mul_(5)
            elif "lm_head" in name:
                parameter.mul_(10)
    return mllm.train()


def toy_questions(mllm: ToolLLM, n_questions: int, seed: int, text_only: bool = False) -> list[EncodedQuestion]:
    rng = np.random.default_rng(seed)
    return [
        encode_question(
            mllm.tokenizer,
            " ".join(rng.choice(WORDS, size=rng.integers(1, 9))),
            has_media=not text_only and bool(rng.random() < 0.6),
            tool_ids=rng.choice(TOOLS, size=rng.integers(1, 6), replace=False).tolist(),
        )
        for _ in range(n_questions)
    ]


def toy_media(n_questions: int, seed: int) -> np.ndarray:
    return np.random.default_rng(1000 + seed).standard_normal((n_questions, ENCODER_DIM)).astype(np.float32)


def run_step(
    mllm: ToolLLM,
    questions: list[EncodedQuestion],
    media: np.ndarray,
    layout: str,
    rank: int = 0,
    world_size: int = 1,
    pack_tokens: int = 96,
) -> tuple[float, float, float]:
    """Add the gradients of this rank's share of one step over all questions; returns its three sums."""
    index = PlanIndex.from_questions(questions)
    step = np.arange(len(questions))
    deal = (
        deal_step(step, index, world_size, pack_tokens)
        if layout == "packed"
        else deal_step_rows(step, index, world_size, 4)
    )
    loss_sum = weight_sum = n_correct = 0.0
    for selection in deal[rank]:
        batch = build_micro_batch(questions, selection, step, pad_id=3, family=index.family)
        output = mllm(to_tensors(batch, media[batch.media_row], "cpu"))
        output.loss_sum.backward()
        loss_sum += output.loss_sum.item()
        weight_sum += output.weight_sum.item()
        n_correct += output.n_correct.item()
    return loss_sum, weight_sum, n_correct


def gradients(mllm: ToolLLM) -> dict[str, Tensor]:
    found = {}
    for name, parameter in mllm.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"{name} has no gradient"
            found[name] = parameter.grad.clone()
        else:
            assert parameter.grad is None, f"{name} is frozen but has a gradient"
    mllm.zero_grad(set_to_none=True)
    return found
