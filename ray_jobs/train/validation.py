"""Validation after an epoch: held-out questions under the catalogue, held-out dialogues turn by turn.

The scores come from the functions that also score a file of predictions (DESIGN, idea 7).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch.distributed as dist

from data_pipeline.records.prompts import render_target
from data_pipeline.records.schema import ToolRecord
from model.decode.dialogue import generate_dialogue
from model.decode.retrieval import compare_with_cards, encode_vectors
from model.decode.tools import Prompt, greedy_tools
from model.decode.trie import ChoiceTrie
from model.llm.tool_llm import ToolLLM
from model.scoring.dialogues import score_dialogues
from model.scoring.selection import SelectionScores, score_records

SCORE_KEY = "val/score"  # what the best checkpoint is best at: the mean over the tasks that are validated
ACCURACY_KEY = "val/tool_accuracy"
RETRIEVAL_KEY = "val/retrieval_accuracy"


@dataclass(frozen=True)
class ValidationSet:
    """Held-out questions and dialogues, encoded.

    Attributes:
        records: the questions.
        prompt_ids: int32 [P] for each.
        media: float32 [E] or None for each.
        tool_ids: what a question may be answered with.
        batch_size: prompts decoded together.
        dialogues: the dialogues.
        dialogue_ids: int32 [P] for each, the prompt.
        cards: int32 [T] of each tool's card, in the order of `tool_ids`; () where no retriever is trained.
        names_tools: whether the model is trained to write answers to questions.
        seen_tool_ids: tools that training dialogues call.
        turn_max_new_tokens: longest turn.
    """

    records: list[ToolRecord]
    prompt_ids: list[np.ndarray]
    media: list[np.ndarray | None]
    tool_ids: list[str]
    batch_size: int
    dialogues: list[ToolRecord] = field(default_factory=list)
    dialogue_ids: list[np.ndarray] = field(default_factory=list)
    cards: tuple[np.ndarray, ...] = ()
    names_tools: bool = True
    seen_tool_ids: frozenset[str] = frozenset()
    turn_max_new_tokens: int = 128


def validate(mllm: ToolLLM, validation: ValidationSet, rank: int, world_size: int, lockstep: bool) -> dict[str, float]:
    """Answer, score, and return the same metrics on every rank; `SCORE_KEY` is among them unless the set is empty.

    Args:
        mllm: the module that is trained.
        validation: what to answer.
        rank, world_size: of this worker.
        lockstep: ZeRO-3 gathers weights in every forward pass, so all ranks must make the same passes: each answers
            everything. Otherwise they share the work out.
    """
    metrics: dict[str, float] = {}
    with _gathered_head(mllm) if lockstep else nullcontext():
        if validation.records and validation.names_tools:
            metrics |= _validate_questions(mllm, validation, rank, world_size, lockstep)
        if validation.records and validation.cards:
            metrics |= _validate_retrieval(mllm, validation, rank, world_size, lockstep)
        if validation.dialogues:
            metrics |= _validate_dialogues(mllm, validation, rank, world_size, lockstep)
    task_scores = [metrics[key] for key in (ACCURACY_KEY, RETRIEVAL_KEY, "val/dialogues/sr") if key in metrics]
    return metrics | ({SCORE_KEY: float(np.mean(task_scores))} if task_scores else {})


def _validate_questions(
    mllm: ToolLLM, validation: ValidationSet, rank: int, world_size: int, lockstep: bool
) -> dict[str, float]:
    trie = ChoiceTrie(validation.tool_ids, mllm.tokenizer)

    def answer(chosen: Sequence[int]) -> list[list[str]]:
        prompts = [Prompt(validation.prompt_ids[i], validation.media[i]) for i in chosen]
        return [[render_target(tool.tool_id)] for tool in greedy_tools(mllm, prompts, trie)]

    responses = _share_out(answer, len(validation.records), validation.batch_size, rank, world_size, lockstep)
    return _name_scores(score_records(validation.records, responses, validation.tool_ids))


def _validate_retrieval(
    mllm: ToolLLM, validation: ValidationSet, rank: int, world_size: int, lockstep: bool
) -> dict[str, float]:
    """Share of the questions whose nearest card, of the whole catalogue's, is a right tool's."""
    size = validation.batch_size
    starts = range(0, len(validation.cards), size)
    cards = np.concatenate(
        [encode_vectors(mllm, [Prompt(card) for card in validation.cards[start : start + size]]) for start in starts]
    )

    def answer(chosen: Sequence[int]) -> list[list[str]]:
        prompts = [Prompt(validation.prompt_ids[i], validation.media[i]) for i in chosen]
        nearest = compare_with_cards(encode_vectors(mllm, prompts), cards).argmax(axis=1)
        return [[validation.tool_ids[tool]] for tool in nearest]

    answers = _share_out(answer, len(validation.records), size, rank, world_size, lockstep)
    hits = [tool in record.valid_tool_ids for record, (tool,) in zip(validation.records, answers, strict=True)]
    return {RETRIEVAL_KEY: float(np.mean(hits))}


def _validate_dialogues(
    mllm: ToolLLM, validation: ValidationSet, rank: int, world_size: int, lockstep: bool
) -> dict[str, float]:
    def respond(chosen: Sequence[int]) -> list[list[str]]:
        return generate_dialogue(
            mllm,
            [validation.dialogue_ids[i] for i in chosen],
            [validation.dialogues[i].turns for i in chosen],
            validation.turn_max_new_tokens,
        )

    turns = _share_out(respond, len(validation.dialogues), validation.batch_size, rank, world_size, lockstep)
    scores = score_dialogues(validation.dialogues, turns, validation.seen_tool_ids)
    return {f"val/dialogues/{name}": value for name, value in scores.headline().items()}


def _share_out(
    answer: Callable[[Sequence[int]], list[list[str]]],
    n_items: int,
    batch_size: int,
    rank: int,
    world_size: int,
    lockstep: bool,
) -> list[list[str]]:
    """The answers to all items, in order, on every rank."""
    mine = range(n_items) if lockstep else range(rank, n_items, world_size)
    answers: dict[int, list[str]] = {}
    for start in range(0, len(mine), batch_size):
        chosen = mine[start : start + batch_size]
        answers |= dict(zip(chosen, answer(chosen), strict=True))
    if not lockstep and world_size > 1:
        gathered: list[Any] = [None] * world_size
        dist.all_gather_object(gathered, answers)
        answers = {i: given for part in gathered for i, given in part.items()}
    return [answers[i] for i in range(n_items)]


def _name_scores(scores: SelectionScores) -> dict[str, float]:
    metrics = {ACCURACY_KEY: scores.groups["overall"].acc.value}
    for group, score in scores.groups.items():
        if group != "overall":
            metrics[f"{ACCURACY_KEY}/{group.replace(':', '_')}"] = score.acc.value
    return metrics


def _gathered_head(mllm: ToolLLM) -> Any:
    """Decoding reads rows of the head's weight directly; under ZeRO-3 it is there only while gathered."""
    import deepspeed

    causal_lm: Any = mllm.llm.get_base_model()
    head = causal_lm.get_output_embeddings()
    return deepspeed.zero.GatheredParameters(list(head.parameters()))
