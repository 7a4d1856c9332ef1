"""Cost of naming the ten likeliest tools: exact search against ten samples, as the paper draws them, and brute force.

The backbone is a tiny Llama, trained for some seconds to answer in the right form with many right tools per question:
sampling from an untrained one never ends, and a search under a flat distribution has to look everywhere.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from data_pipeline.encoding import encode_question
from data_pipeline.prompts import render_prompt, render_target
from model.config import ModelConfig
from model.decode import DecodeStats, Prompt, RankedTool, generate_free, score_all_tools, top_k_tools
from model.mllm import ToolLLM
from model.tiny import build_tiny_backbone
from model.trie import CatalogTrie

log = logging.getLogger(__name__)

K = 10
N_TOOLS = 933  # as many as ToolMMBench's catalogue has
TEMPERATURE = 0.4  # MLLM-Tool section 4.1
MAX_NEW_TOKENS = 64
BATCH_SIZE = 16
TRAIN_STEPS = 200
WIDTHS = (1, 4, 32)

TASKS = ("detection", "captioning", "translation", "summarization", "denoising", "tagging", "depth", "pose", "speech")
OWNERS = ("facebook", "google", "microsoft", "openai", "laion", "Helsinki-NLP", "zoo", "nvidia")
FAMILIES = ("bert", "t5", "vit", "wav2vec2", "resnet", "detr", "whisper", "blip")
TAILS = ("", "-base", "-large", "-small", "-v2", "-finetuned")


def run() -> dict[str, Any]:
    """Measure, print a table, and return the numbers (queries per second, passes, ratios)."""
    with tempfile.TemporaryDirectory() as folder:
        mllm, tools_of = _build_trained_mllm(Path(folder) / "backbone")
    trie = CatalogTrie([tool for tools in tools_of.values() for tool in tools], mllm.tokenizer)
    rng = np.random.default_rng(1)
    tasks = [str(task) for task in rng.choice(TASKS, BATCH_SIZE)]
    table = _Table(
        [Prompt(encode_question(mllm.tokenizer, _question(task, rng), False, ()).prompt_ids) for task in tasks]
    )

    def search(batch: Sequence[Prompt], stats: DecodeStats, width: int | None = None) -> list[Any]:
        return top_k_tools(mllm, batch, K, trie, width=width, stats=stats)

    def sample(batch: Sequence[Prompt], stats: DecodeStats) -> list[Any]:
        return generate_free(mllm, batch, MAX_NEW_TOKENS, K, TEMPERATURE, stats=stats)

    n_tokens = float(np.mean([len(sequence) for sequence in trie.sequences]))
    print(f"top {K} of {len(trie)} tools, {n_tokens:.1f} tokens per answer, {BATCH_SIZE} questions")
    print(f"{'method':<36}{'batch':>6}{'queries/s':>11}{'passes':>8}{'tokens/query':>14}")
    for width in WIDTHS:
        table.measure(f"best-first, width {width}, batched", BATCH_SIZE, partial(search, width=width))
    table.measure("best-first, batched", BATCH_SIZE, search)
    ranked = table.measure("best-first", 1, search)
    sampled = table.measure("10 samples, batched", BATCH_SIZE, sample)
    table.measure("10 sampled generate() calls", 1, lambda batch, _: [_generate_ten(mllm, batch[0])], n_queries=2)
    exact = table.measure("brute force", 1, lambda batch, _: list(score_all_tools(mllm, batch, trie)), n_queries=2)

    rates = table.queries_per_s
    results = {
        "n_tools": len(trie),
        "queries_per_s": rates,
        "passes_per_batch": table.passes_per_batch,
        "speedup_over_generate": rates["best-first"] / rates["10 sampled generate() calls"],
        "speedup_over_samples_batched": rates["best-first, batched"] / rates["10 samples, batched"],
        "speedup_over_brute_force": rates["best-first"] / rates["brute force"],
        "max_difference_to_brute_force": _max_difference(ranked, exact, trie),
        "top_k_tools_found_by_samples": _count_found(ranked, sampled),
    }
    print(
        f"best-first is {results['speedup_over_generate']:.0f} times as fast as {K} generate() calls, "
        f"{results['speedup_over_samples_batched']:.1f} times as {K} batched samples, "
        f"{results['speedup_over_brute_force']:.0f} times as brute force "
        f"(largest difference {results['max_difference_to_brute_force']:.0e}); "
        f"{K} samples name {results['top_k_tools_found_by_samples']:.1f} of the {K} likeliest tools."
    )
    return results


class _Table:
    """Times methods on the same questions and prints one line for each."""

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self._prompts = prompts
        self.queries_per_s: dict[str, float] = {}
        self.passes_per_batch: dict[str, float] = {}

    def measure(
        self,
        name: str,
        batch_size: int,
        decode: Callable[[Sequence[Prompt], DecodeStats], list[Any]],
        n_queries: int | None = None,
    ) -> list[Any]:
        """Decode the first `n_queries` questions, or all, in batches after one of warm-up; returns what came out."""
        n_queries = n_queries or len(self._prompts)
        decode(self._prompts[:batch_size], DecodeStats())
        stats, outputs = DecodeStats(), []
        start = time.perf_counter()
        for first in range(0, n_queries, batch_size):
            outputs.extend(decode(self._prompts[first : first + batch_size], stats))
        self.queries_per_s[name] = n_queries / (time.perf_counter() - start)
        costs = f"{'-':>8}{'-':>14}"
        if stats.forward_passes:  # else a method that does not count
            self.passes_per_batch[name] = stats.forward_passes * batch_size / n_queries
            tokens = (stats.prompt_tokens + stats.answer_tokens) / n_queries
            costs = f"{self.passes_per_batch[name]:>8.1f}{tokens:>14.0f}"
        print(f"{name:<36}{batch_size:>6}{self.queries_per_s[name]:>11.2f}{costs}")
        return outputs


def _max_difference(ranked: list[list[RankedTool]], exact: list[np.ndarray], trie: CatalogTrie) -> float:
    """Largest difference in probability over the questions that brute force has scored."""
    return max(
        abs(tool.probability - row[trie.tool_ids.index(tool.tool_id)])
        for ranking, row in zip(ranked, exact, strict=False)
        for tool in ranking
    )


def _count_found(ranked: list[list[RankedTool]], sampled: list[list[str]]) -> float:
    """How many of a question's likeliest tools its samples name, on average."""
    found = []
    for ranking, texts in zip(ranked, sampled, strict=True):
        lines = {text.split("\n")[0] for text in texts}
        found.append(sum(render_target(tool.tool_id).split("\n")[0] in lines for tool in ranking))
    return float(np.mean(found))


def _generate_ten(mllm: ToolLLM, prompt: Prompt) -> list[str]:
    """Ten separate calls of `generate`, each computing the prompt anew, as the reference does."""
    torch.manual_seed(0)
    tokenizer, texts = mllm.tokenizer, []
    with torch.inference_mode():
        embeds = mllm.embed_prompt(torch.from_numpy(prompt.prompt_ids)[None].long(), None)
        for _ in range(K):
            ids = mllm.llm.generate(
                inputs_embeds=embeds,
                attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long),
                do_sample=True,
                temperature=TEMPERATURE,
                top_k=0,
                max_new_tokens=MAX_NEW_TOKENS,
                stop_strings="###",
                tokenizer=tokenizer,
                pad_token_id=tokenizer.pad_token_id,
            )
            texts.append(tokenizer.decode(ids[0], skip_special_tokens=True))
    return texts


def _question(task: str, rng: np.random.Generator) -> str:
    opening = str(rng.choice(["please find me a tool for", "I need", "what does", "could you do some"]))
    return f"{opening} {task} on the file that I have just recorded on my old phone"


def _build_tools() -> dict[str, list[str]]:
    """Made-up names in the shape of hub ids, by task."""
    rng = np.random.default_rng(0)
    tools: dict[str, list[str]] = {task: [] for task in TASKS}
    names = {"unknown"}
    tools[TASKS[0]].append("unknown")
    while len(names) < N_TOOLS:
        task = TASKS[len(names) % len(TASKS)]
        words = rng.choice(OWNERS), rng.choice(FAMILIES), task, rng.choice(TAILS)
        name = "{}/{}-{}{}".format(*words)
        if name not in names:
            names.add(name)
            tools[task].append(name)
    return tools


def _build_trained_mllm(folder: Path) -> tuple[ToolLLM, dict[str, list[str]]]:
    """A tiny backbone that has learned the answers' form and which names go with which task; adapter untrained."""
    tools_of = _build_tools()
    rng = np.random.default_rng(0)
    questions = [_question(task, rng) for task in TASKS for _ in range(20)]
    texts = [piece for question in questions for piece in render_prompt(question, False) if piece]
    texts += [render_target(tool) for tools in tools_of.values() for tool in tools]
    build_tiny_backbone(folder, texts, vocab_size=1024, hidden_size=128, n_layers=4, intermediate_size=384)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    llm = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa").train()
    optimizer = torch.optim.AdamW(llm.parameters(), lr=3e-3)
    for _ in range(TRAIN_STEPS):
        rows = []
        for task in rng.choice(TASKS, 16):
            tool = str(rng.choice(tools_of[str(task)]))
            rows.append(encode_question(tokenizer, _question(str(task), rng), False, [tool]))
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
    log.info("bench_decode train_loss=%.3f steps=%d", float(loss.detach()), TRAIN_STEPS)
    llm.eval().save_pretrained(folder)
    return ToolLLM.build(ModelConfig(backbone=str(folder), encoder_dim=64, lora_r=8)).eval(), tools_of
