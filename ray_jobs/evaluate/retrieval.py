"""Evaluation of the retriever: questions against the cards of the whole catalogue, seen and unseen tools apart.

Beside it stand two ways without training: tf-idf of the words, and of what the backbone says a tool would have to do.
A question counts as unseen if training was asked for none of its right tools (`prepare.unseen_tools`).
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from data_pipeline.batches.cards import encode_card
from data_pipeline.batches.encoding import encode_question, longest_answer
from data_pipeline.markdown import render_table
from data_pipeline.records.catalog import UNKNOWN_TOOL_ID, Tool
from data_pipeline.records.prompts import render_target
from data_pipeline.records.schema import ToolRecord
from model.decode.retrieval import compare_with_cards, encode_vectors
from model.decode.task_description import describe_tasks
from model.decode.tree_cache import Prompt
from model.llm.backbone import load_tokenizer
from model.llm.tool_llm import ToolLLM
from model.scoring.baselines import description_baseline
from model.scoring.selection import score_abstention, score_records
from ray_jobs.evaluate.actors import TrainedModel, decode_on_actors
from ray_jobs.train.features import MediaVectors

DEPTHS = (1, 5, 10)  # of Recall@K


@dataclass(frozen=True)
class RetrievalEvaluation:
    """Scores of the retriever and of two baselines.

    Attributes:
        result: {"retriever", "tf-idf" or "task description":
            {"all", "seen", "unseen": {"n", "acc", "acc_low", "acc_high", "recall@K", "abstention_f1"}}},
            "n_cards", what `count_tokens` tells, and "encode_s".
    """

    result: dict[str, Any]

    def to_markdown(self) -> str:
        """The section of the report."""
        rows = [
            [
                who,
                group,
                str(score["n"]),
                f"{100 * score['acc']:.1f} [{100 * score['acc_low']:.1f}, {100 * score['acc_high']:.1f}]",
                *(f"{100 * score[f'recall@{k}']:.1f}" for k in DEPTHS),
                "–" if score["abstention_f1"] is None else f"{100 * score['abstention_f1']:.1f}",
            ]
            for who, groups in self.result.items()
            if isinstance(groups, dict)
            for group, score in groups.items()
        ]
        header = ["by", "tools", "n", "Acc % [95 %]", *(f"Recall@{k} %" for k in DEPTHS), "abstention F1 %"]
        return "\n".join(
            [
                f"## Retrieval among the cards of {self.result['n_cards']} tools",
                "",
                render_table(header, rows),
                "",
                f"Tokens saved: the {min(max(DEPTHS), self.result['n_cards'])} nearest cards have "
                f"{self.result['offered_tokens']:.0f} tokens on average, all cards {self.result['all_tokens']}: who "
                f"offers the nearest alone saves {100 * self.result['tokens_saved']:.1f} % of them.",
                "",
                "Unseen: training was asked for none of the right tools. Recall@K = share of the right tools among the "
                "K nearest cards; a question with more than K right tools cannot reach 1. Task description: the "
                "backbone as released says from the words what a tool would do, and tf-idf finds the nearest card. "
                "Abstention: `unknown` first, of the group's questions and those that no tool meets.",
                "",
            ]
        )


class VectorEncoder:
    """Ray Data actor: a built model that turns prompts into vectors."""

    def __init__(self, model: TrainedModel) -> None:
        self._mllm: ToolLLM = model.build()

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows = batch.to_pylist()
        prompts = [
            Prompt(
                np.array(row["prompt_ids"], dtype=np.int32),
                None if row["media"] is None else np.array(row["media"], dtype=np.float32),
            )
            for row in rows
        ]
        vectors = list(encode_vectors(self._mllm, prompts))
        return pa.table({"position": batch["position"], "vector": pa.array(vectors, pa.list_(pa.float32()))})


class TaskDescriber:
    """Ray Data actor: the backbone of a model, which says what a tool for a question would do."""

    def __init__(self, model: TrainedModel) -> None:
        self._mllm: ToolLLM = model.build()

    def __call__(self, batch: pa.Table) -> pa.Table:
        texts = describe_tasks(self._mllm, batch["instruction"].to_pylist())
        return pa.table({"position": batch["position"], "text": pa.array(texts, pa.string())})


def evaluate_retrieval(
    model: TrainedModel,
    tools: Sequence[Tool],
    max_target_tokens: int,
    seen_tool_ids: Collection[str],
    records: Sequence[ToolRecord],
    vectors: MediaVectors,
) -> RetrievalEvaluation:
    """Rank the cards of all tools for every question, and score.

    Args:
        model: trained with `train.loss.retrieval`.
        tools: the catalogue's entries that a question may be answered with.
        max_target_tokens: see `encode_question`.
        seen_tool_ids: tools that questions of the training split are answered with.
        records: questions of the test split that can be used, at least one.
        vectors: of their media.
    """
    start = time.perf_counter()
    tool_ids = [tool.tool_id for tool in tools]
    tokenizer = load_tokenizer(model.model_config["backbone"])
    reserve_tokens = longest_answer(tokenizer, tool_ids)
    cards = [encode_card(tokenizer, tool.call_name, tool.description) for tool in tools]
    prompts = cards + [
        encode_question(
            tokenizer, record.instruction, record.has_media, (), max_target_tokens, reserve_tokens
        ).prompt_ids
        for record in records
    ]
    table = pa.table(
        {
            "position": pa.array(range(len(prompts)), pa.int64()),
            "prompt_ids": pa.array(prompts, pa.list_(pa.int32())),
            "media": pa.array(
                [None] * len(tools) + [vectors.get(record) for record in records], pa.list_(pa.float32())
            ),
        }
    )
    table = table.take(np.argsort([len(prompt) for prompt in prompts], kind="stable"))  # less padding in a batch
    rows = decode_on_actors(VectorEncoder, model, table, model, "prompts")
    encoded = np.array([row["vector"] for row in rows], dtype=np.float32)
    p = compare_with_cards(encoded[len(tools) :], encoded[: len(tools)])  # [Q, K]
    nearest = np.argsort(-p, axis=1, kind="stable")[:, : max(DEPTHS)]
    answers = {
        "retriever": [[tool_ids[tool] for tool in row] for row in nearest],
        "tf-idf": description_baseline(tools, [record.instruction for record in records], max(DEPTHS)),
        "task description": description_baseline(tools, _describe(model, records), max(DEPTHS)),
    }
    seen = frozenset(seen_tool_ids)
    is_seen = np.array([not seen.isdisjoint(record.valid_tool_ids) for record in records])
    groups = {"all": np.ones(len(records), dtype=bool), "seen": is_seen, "unseen": ~is_seen}
    result: dict[str, Any] = {
        who: {group: _score(records, found, mask, tool_ids) for group, mask in groups.items() if mask.any()}
        for who, found in answers.items()
    }
    return RetrievalEvaluation(
        result
        | {"n_cards": len(tools)}
        | count_tokens(cards, nearest)
        | {"encode_s": round(time.perf_counter() - start, 2)},
    )


def count_tokens(cards: Sequence[np.ndarray], nearest: np.ndarray) -> dict[str, float]:
    """What a prompt is spared that offers each question its nearest cards in place of all.

    Args:
        cards: int32 [T] of each tool's card.
        nearest: int [Q, K], the numbers of each question's nearest cards.

    Returns:
        "all_tokens" of all cards, "offered_tokens" of the K nearest on average, "tokens_saved" as a share of the first.
    """
    lengths = np.array([len(card) for card in cards])
    all_tokens, offered = int(lengths.sum()), float(lengths[nearest].sum(axis=1).mean())
    return {"all_tokens": all_tokens, "offered_tokens": offered, "tokens_saved": 1 - offered / all_tokens}


def _describe(model: TrainedModel, records: Sequence[ToolRecord]) -> list[str]:
    """For each question a sentence about the tool that it needs (`describe_tasks`)."""
    words = [record.instruction for record in records]
    table = pa.table({"position": pa.array(range(len(words)), pa.int64()), "instruction": pa.array(words, pa.string())})
    table = table.take(np.argsort([len(text) for text in words], kind="stable"))  # less padding in a batch
    return [row["text"] for row in decode_on_actors(TaskDescriber, model, table, model, "descriptions")]


def _score(
    records: Sequence[ToolRecord], answers: Sequence[Sequence[str]], mask: np.ndarray, tool_ids: Sequence[str]
) -> dict[str, float | None]:
    chosen: list[int] = np.flatnonzero(mask).tolist()
    own = [records[i] for i in chosen]
    scores: dict[str, float | None] = {}
    for k in DEPTHS:
        responses = [[render_target(tool_id) for tool_id in answers[i][:k]] for i in chosen]
        overall = score_records(own, responses, tool_ids).groups["overall"]
        scores |= {
            "n": overall.n,
            "acc": overall.acc.value,
            "acc_low": overall.acc.low,
            "acc_high": overall.acc.high,
            f"recall@{k}": overall.recall.value,
        }
    unanswerable = np.array([UNKNOWN_TOOL_ID in record.valid_tool_ids for record in records])
    abstained = np.array([found[0] == UNKNOWN_TOOL_ID for found in answers])
    both = mask | unanswerable
    scores["abstention_f1"] = score_abstention(abstained[both], unanswerable[both])["f1"]
    return scores
