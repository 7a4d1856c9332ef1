"""Cost of naming the ten likeliest tools: exact search against ten samples, as the paper draws them, and brute force.

The model is `model.tiny.practised`'s.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.batches.encoding import encode_question
from data_pipeline.records.prompts import render_target
from model.decode.free import generate_free
from model.decode.tools import DecodeStats, Prompt, RankedTool, score_all_tools, top_k_tools
from model.decode.trie import ChoiceTrie
from model.tiny.practised import (
    MAX_NEW_TOKENS,
    TEMPERATURE,
    build_practised_mllm,
    draw_questions,
    sample_with_generate,
)

K = 10
BATCH_SIZE = 16
WIDTHS = (1, 4, 13, 32)
TRAIN_STEPS = 200


def run() -> dict[str, Any]:
    """Measure, print a table, and return the numbers (queries per second, passes, ratios)."""
    with tempfile.TemporaryDirectory() as folder:
        mllm, tools_of = build_practised_mllm(Path(folder) / "backbone", TRAIN_STEPS)
    trie = ChoiceTrie([tool for tools in tools_of.values() for tool in tools], mllm.tokenizer)
    questions = draw_questions(BATCH_SIZE, seed=1)
    table = _Table([Prompt(encode_question(mllm.tokenizer, question, False, ()).prompt_ids) for question in questions])

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
    table.measure(
        "10 sampled generate() calls", 1, lambda batch, _: [sample_with_generate(mllm, batch[0], K)], n_queries=2
    )
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


def _max_difference(ranked: list[list[RankedTool]], exact: list[np.ndarray], trie: ChoiceTrie) -> float:
    """Largest difference in probability over the questions that brute force has scored."""
    return max(
        abs(tool.probability - row[trie.choices.index(tool.tool_id)])
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
