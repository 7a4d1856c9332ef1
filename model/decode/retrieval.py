"""From questions to tool cards: the vectors of both, and what they say of each other (DESIGN, idea 10).

A card is one forward pass, once; so a tool that training never saw costs no training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from data_pipeline.batches.cards import as_question
from data_pipeline.batches.families import count_shared
from data_pipeline.batches.packing import collate, pack_questions
from data_pipeline.errors import InputError
from model.decode.tools import RankedTool
from model.decode.tree_cache import CPU_LENGTH_MULTIPLE, DecodeStats, Prompt, TreeCache, causal_lm_of, decoding
from model.llm.attention import build_mask
from model.llm.retrieval_loss import SCALE, to_vectors

PASS_TOKENS = 128  # of cards that are read together: as long may a question wait, as for a pass of turns


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


def encode_cards(mllm: Any, cards: Sequence[np.ndarray]) -> np.ndarray:
    """The vectors of cards, those of `encode_vectors` up to rounding, without its padding: a pass reads several of them
    in one sequence, in which they do not see each other and what all begin with stands once.

    Args:
        mllm: see `encode_vectors`.
        cards: int32 [T] each, of `encode_card`; at least one.

    Returns:
        float32 [N, D], each of length 1.
    """
    vectors = [np.empty(0, dtype=np.float32)] * len(cards)
    with decoding(mllm):
        for places in plan_passes(cards):
            for place, vector in zip(places, _read_pack(mllm, [cards[place] for place in places]), strict=True):
                vectors[place] = vector
    return np.stack(vectors)


def plan_passes(cards: Sequence[np.ndarray]) -> list[list[int]]:
    """Which of the cards, by their places, each pass of `encode_cards` reads: `PASS_TOKENS` at most, or one card."""
    n_shared = count_shared(cards) if cards else 0
    passes: list[list[int]] = []
    n_tokens = PASS_TOKENS
    for place in sorted(range(len(cards)), key=lambda place: cards[place].tolist()):  # those that begin alike together
        n_own = len(cards[place]) - n_shared
        if n_tokens + n_own > PASS_TOKENS:
            passes.append([])
            n_tokens = n_shared
        passes[-1].append(place)
        n_tokens += n_own
    return passes


def _read_pack(mllm: Any, cards: Sequence[np.ndarray]) -> np.ndarray:
    """float32 [N, D]: one pass over cards."""
    n = len(cards)
    pack = pack_questions(list(map(as_question, cards)), np.arange(n), np.full(n, -1), family=np.zeros(n, dtype=int))
    batch = collate([pack], pad_to_multiple=CPU_LENGTH_MULTIPLE)
    base = causal_lm_of(mllm).base_model
    position_ids = torch.from_numpy(batch.position_ids).long().to(base.device)  # [1, T]
    subtree_end = torch.from_numpy(batch.subtree_end).to(base.device)
    mllm.window.check(int(batch.position_ids.max()) + 1, mllm.config.backbone)
    embeds = mllm.embed_prompt(torch.from_numpy(batch.input_ids).long().to(base.device), None)  # [1, T, D]
    masks = mllm.window.masks(lambda size: build_mask(subtree_end, position_ids, size, "sdpa", embeds.dtype))
    output = base(inputs_embeds=embeds, attention_mask=masks, position_ids=position_ids, use_cache=False)
    return to_vectors(output.last_hidden_state[0, torch.from_numpy(batch.prompt_end).long()]).cpu().numpy()


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
        if not self._rows:
            return []
        probabilities = compare_with_cards(np.stack([vector for vector, _ in self._rows]), self._cards)  # [Q, K]
        rankings = []
        for p, (_, k) in zip(probabilities, self._rows, strict=True):
            best = np.argsort(-p, kind="stable")[:k].tolist()
            best += sorted((tool for tool in self._also if tool not in best), key=lambda tool: -p[tool])
            rankings.append([RankedTool(self._tool_ids[tool], float(p[tool])) for tool in best])
        return rankings
