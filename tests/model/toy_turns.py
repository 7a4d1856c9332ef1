"""A toy backbone whose tokenizer knows turns of dialogues, and what such turns are asked with."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizer_kinds import put_llama_tokenizer

from data_pipeline.records.catalog import Tool
from data_pipeline.records.dialogue import render_answer, render_call, render_dialogue_prompt, render_observation
from data_pipeline.records.schema import Turn
from model.decode.turn_types import TurnArgument, TurnRequest, TurnTool
from model.llm.tool_llm import ToolLLM
from model.tiny.backbone import build_tiny_backbone

IMAGE, AUDIO, TEXT = TurnArgument("image"), TurnArgument("audio"), TurnArgument("text")
TOOLS = (
    TurnTool("Blur It", (IMAGE,)),
    TurnTool("Blur It Again", (IMAGE, TEXT)),
    TurnTool("Mix Two", (IMAGE, IMAGE)),
    TurnTool("Draw", (TEXT,)),
    TurnTool("Swap", (IMAGE, TEXT, TEXT)),
    TurnTool("Pitch", (AUDIO, TurnArgument("integer", default=2, minimum=-12, maximum=12), TurnArgument("number"))),
    TurnTool("Style", (IMAGE, TurnArgument("choice", choices=("oil", "oil paint", "pencil")))),
    TurnTool("Tell Time", ()),
)
FILES = ("image/a.png", "image/ab.png", "audio/c.wav")
PROMPT = render_dialogue_prompt([Tool("x", name=tool.name) for tool in TOOLS], "", "blur the dog, now")
REQUEST = TurnRequest(PROMPT, tools=TOOLS, files=FILES, fallback_text="the dog, or so")
NOW = (
    Turn("assistant", render_call("Blur It", "image/a.png")),
    Turn("observation", render_observation("image/ab.png")),
)


def build_turn_backbone(folder: Path, kind: str) -> Path:
    """One with a tokenizer of this kind (`KINDS`)."""
    texts = [
        PROMPT,
        *(render_call(tool.name, "image/a.png, the dog") for tool in TOOLS),
        render_answer("a dog, image/"),
    ]
    build_tiny_backbone(
        folder,
        texts * 2,
        vocab_size=420,
        hidden_size=32,
        n_layers=2,
        n_heads=4,
        intermediate_size=48,
        max_positions=900,
    )
    return put_llama_tokenizer(folder, texts, 420) if kind == "llama" else folder


def shaken(mllm: ToolLLM, seed: int) -> ToolLLM:
    """Other random weights in the head: other answers."""
    with torch.no_grad():
        for name, parameter in mllm.named_parameters():
            if "lm_head" in name and parameter.requires_grad:
                parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(seed))
    return mllm
