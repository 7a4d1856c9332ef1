"""From questions to tool cards: the vectors of both, and what they say of each other (DESIGN, idea 10).

A card is one forward pass, once; so a tool that training never saw costs no training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from data_pipeline.errors import InputError
from model.decode.tools import RankedTool
from model.decode.tree_cache import DecodeStats, Prompt, TreeCache, decoding
from model.llm.retrieval_loss import SCALE, to_vectors


def encode_vectors(mllm: Any, prompts: Sequence[Prompt]) -> np.ndarray:
    """The vectors of questions (their prompts without an answer) or of cards (`encode_card`).

    Args:
        mllm: a `ToolLLM` that was trained with `train.loss.retrieval`.
        prompts: the batch, at least one; lengths and modalities may differ.

    Returns:
        float32 [B, D], each of length 1.
    """
    with decoding(mllm):
        cache = TreeCache(mllm, prompts, np.zeros(0, dtype=np.int32), DecodeStats())
        return to_vectors(cache.hidden).cpu().numpy()


def compare_with_cards(questions: np.ndarray, cards: np.ndarray) -> np.ndarray:
    """Probability of every card for every question: the softmax that training minimised, over these cards.

    Args:
        questions: float32 [Q, D] of `encode_vectors`.
        cards: float32 [K, D] of `encode_vectors`, K at least 1.

    Returns:
        float64 [Q, K]; each row sums to 1.
    """
    scores = SCALE * (questions.astype(np.float64) @ cards.T.astype(np.float64))  # [Q, D] x [D, K]
    scores -= scores.max(axis=1, keepdims=True)
    p = np.exp(scores)
    return p / p.sum(axis=1, keepdims=True)


class CardSearch:
    """What `ToolSearch` does, by cards: ranks tools that training need not have known, in one pass of each question."""

    def __init__(self, mllm: Any, tool_ids: Sequence[str], cards: np.ndarray, also: Sequence[str] = ()) -> None:
        """
        Args:
            mllm: see `encode_vectors`.
            tool_ids: the tools to choose from, K of them, each once.
            cards: float32 [K, D], their vectors.
            also: tool ids among them whose probability is wanted even outside the k best.
        """
        self._mllm = mllm
        self._tool_ids = tuple(tool_ids)
        self._cards = cards
        self._also = [self._tool_ids.index(tool_id) for tool_id in also]
        self._rows: list[tuple[np.ndarray, int]] = []

    def add(self, prompts: Sequence[Prompt], k: int) -> None:
        """Run further prompts; k tools are wanted of each, at least one (InputError)."""
        if k < 1:
            raise InputError(f"k is {k}; it must be at least 1.")
        if prompts:
            self._rows += [(vector, k) for vector in encode_vectors(self._mllm, prompts)]

    def run(self) -> list[list[RankedTool]]:
        """For every prompt, in order, its k best tools, the likeliest first, then those of `also` not among them."""
        rankings = []
        for vector, k in self._rows:
            (p,) = compare_with_cards(vector[None], self._cards)  # [K]
            best = np.argsort(-p, kind="stable")[:k].tolist()
            best += sorted((tool for tool in self._also if tool not in best), key=lambda tool: -p[tool])
            rankings.append([RankedTool(self._tool_ids[tool], float(p[tool])) for tool in best])
        return rankings
