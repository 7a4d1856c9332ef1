"""A tiny model with habits, for benchmarks: it answers in the right form, with several right tools per question.

An untrained one will not do: sampling from it never ends, and a search under a flat distribution has to look
everywhere.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from data_pipeline.batches.encoding import encode_question
from data_pipeline.records.prompts import render_prompt, render_target
from model.decode.free import ANSWER_STOP
from model.decode.tools import Prompt
from model.llm.config import ModelConfig
from model.llm.tool_llm import ToolLLM
from model.tiny.backbone import build_tiny_backbone

logger = logging.getLogger(__name__)

TEMPERATURE = 0.4  # of samples: MLLM-Tool section 4.1
MAX_NEW_TOKENS = 64
N_TOOLS = 933  # as many as ToolMMBench's catalogue has
VOCAB_SIZE = 340  # at which a target takes 27 tokens, as ToolMMBench's do under Llama's tokenizer
TASKS = ("detection", "captioning", "translation", "summarization", "denoising", "tagging", "depth", "pose", "speech")
OWNERS = ("facebook", "google", "microsoft", "openai", "laion", "Helsinki-NLP", "zoo", "nvidia")
WISHES = tuple((owner, task) for owner in OWNERS for task in TASKS)
FAMILIES = ("bert", "t5", "vit", "wav2vec2", "resnet", "detr", "whisper", "blip")
TAILS = ("", "-base", "-large", "-small", "-v2", "-finetuned")
MORE_TAILS = tuple(f"{tail}{ending}" for tail in TAILS for ending in ("", *(f"-{n}" for n in range(1, 10))))


def render_question(wish: tuple[str, str], rng: np.random.Generator) -> str:
    """Words that ask for any tool of one of `WISHES`."""
    opening = str(rng.choice(["please find me a tool by", "I need one by", "what does", "could you take one by"]))
    return f"{opening} {wish[0]} for {wish[1]} on the file that I have just recorded"


def draw_questions(n: int, seed: int, wishes: Sequence[tuple[str, str]] = WISHES) -> list[str]:
    """Questions for random ones of the wishes."""
    rng = np.random.default_rng(seed)
    return [render_question(wishes[i], rng) for i in rng.integers(len(wishes), size=n)]


def sample_with_generate(mllm: ToolLLM, prompt: Prompt, n_samples: int) -> list[str]:
    """Separate calls of `generate`, each computing the prompt anew, as the reference draws its answers."""
    torch.manual_seed(0)
    tokenizer, texts = mllm.tokenizer, []
    with torch.inference_mode():
        embeds = mllm.embed_prompt(torch.from_numpy(prompt.prompt_ids)[None].long(), None)
        for _ in range(n_samples):
            ids = mllm.llm.generate(
                inputs_embeds=embeds,
                attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long),
                do_sample=True,
                temperature=TEMPERATURE,
                top_k=0,
                max_new_tokens=MAX_NEW_TOKENS,
                stop_strings=ANSWER_STOP,
                tokenizer=tokenizer,
                pad_token_id=tokenizer.pad_token_id,
            )
            texts.append(tokenizer.decode(ids[0], skip_special_tokens=True))
    return texts


def build_tools(n_tools: int) -> dict[tuple[str, str], list[str]]:
    """Made-up names in the shape of hub ids, by wish, as many each; of a few names there are not any for each wish.

    Fewer are the first ones of more; there are some 30,000.
    """
    rng = np.random.default_rng(0)
    tools: dict[tuple[str, str], list[str]] = {wish: [] for wish in WISHES[:n_tools]}
    names = {"unknown"}
    tools[WISHES[0]].append("unknown")
    while len(names) < n_tools:
        owner, task = WISHES[len(names) % len(WISHES)]
        tails = TAILS if len(names) < N_TOOLS else MORE_TAILS
        name = f"{owner}/{rng.choice(FAMILIES)}-{task}{rng.choice(tails)}"
        if name not in names:
            names.add(name)
            tools[owner, task].append(name)
    return tools


def build_practised_mllm(
    folder: Path, n_steps: int = 200, n_tools: int = N_TOOLS
) -> tuple[ToolLLM, dict[tuple[str, str], list[str]]]:
    """A tiny Llama, trained for some seconds to name any of the right tools for a wish; its adapter is untrained.

    Args:
        folder: where the backbone is saved.
        n_steps: of 16 questions each.
        n_tools: that it practises, see `build_tools`.

    Returns:
        the model, and the tools of each of `WISHES`, or of the first so many of them where there are fewer tools.
    """
    tools_of = build_tools(n_tools)
    wishes = list(tools_of)
    rng = np.random.default_rng(0)
    questions = [render_question(wish, rng) for wish in wishes for _ in range(3)]
    texts = [piece for question in questions for piece in render_prompt(question, False) if piece]
    texts += [render_target(tool) for tools in tools_of.values() for tool in tools]
    build_tiny_backbone(folder, texts, vocab_size=VOCAB_SIZE, hidden_size=128, intermediate_size=384)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    llm = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa").train()
    optimizer = torch.optim.AdamW(llm.parameters(), lr=3e-3)
    for _ in range(n_steps):
        rows = []
        for i in rng.integers(len(wishes), size=16):
            tool = str(rng.choice(tools_of[wishes[i]]))
            rows.append(encode_question(tokenizer, render_question(wishes[i], rng), False, [tool]))
        length = max(len(row.prompt_ids) + len(row.answers[0]) for row in rows)
        ids, labels = torch.zeros(len(rows), length, dtype=torch.long), torch.full((len(rows), length), -100)
        for i, row in enumerate(rows):
            start, end = len(row.prompt_ids), len(row.prompt_ids) + len(row.answers[0])
            ids[i, :end] = torch.from_numpy(np.concatenate([row.prompt_ids, row.answers[0]]))
            labels[i, start:end] = ids[i, start:end]
        loss = llm(input_ids=ids, labels=labels, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    logger.info("practised model: loss=%.3f steps=%d", float(loss.detach()), n_steps)
    llm.eval().save_pretrained(folder)
    return ToolLLM.build(ModelConfig(backbone=str(folder), encoder_dim=64, lora_r=8)).eval(), tools_of
