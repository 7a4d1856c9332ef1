"""Validation after an epoch: held-out questions under the catalogue, held-out dialogues turn by turn.

The scores come from the functions that also score a file of predictions (DESIGN, idea 7).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import astuple, dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch.distributed as dist

from data_pipeline.records.prompts import render_target
from data_pipeline.records.schema import ToolRecord
from model.decode.dialogue import generate_dialogue
from model.decode.retrieval import compare_with_cards, encode_vectors
from model.decode.tools import Prompt, greedy_tools
from model.decode.trie import ChoiceTrie
from model.llm.tool_llm import ToolLLM
from model.scoring.dialogues import DialogueScores, score_dialogues
from model.scoring.intervals import Estimate, estimate_proportion
from model.scoring.selection import SelectionScores, score_records
from ray_jobs.train.lockstep import Lockstep

SCORE_KEY = "val/score"  # what the best checkpoint is best at: the mean over the tasks that are validated
SCORE_LOW_KEY = "val/score_low"  # ends of its 95 % interval
SCORE_HIGH_KEY = "val/score_high"
ACCURACY_KEY = "val/tool_accuracy"
RETRIEVAL_KEY = "val/retrieval_accuracy"
T = TypeVar("T")


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

    @property
    def n_questions(self) -> int:
        """How many questions and dialogues the score is of."""
        return len(self.records) + len(self.dialogues)

    def compute_id(self) -> str:
        """Names what is asked, how it is scored and among which tools: scores of one id can be compared.

        Other training data, another tokenizer or encoder leave it as it is.
        """
        how = [self.tool_ids, self.names_tools, bool(self.cards), len(self.records)]
        digest = hashlib.sha256(json.dumps(how).encode())
        for record in (*self.records, *self.dialogues):
            asked = [record.instruction, record.media_sha256, record.valid_tool_ids, *map(astuple, record.turns)]
            digest.update(json.dumps(asked).encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class _Group:
    """The ranks among which work is shared out; `steps` where they must make the same passes."""

    rank: int
    size: int
    batch_size: int
    steps: Lockstep | None

    def share_out(self, answer: Callable[[Sequence[int]], Sequence[T]], n_items: int) -> list[T]:
        """The answers to all items, in order, on every rank; `answer` is given the numbers of a batch of them."""
        mine = range(self.rank, n_items, self.size)
        answers: dict[int, T] = {}
        for start in range(0, len(mine), self.batch_size):
            chosen = mine[start : start + self.batch_size]
            answers |= dict(zip(chosen, answer(chosen), strict=True))
        if self.steps:
            self.steps.finish()
        if self.size > 1:
            gathered: list[Any] = [None] * self.size
            dist.all_gather_object(gathered, answers)
            answers = {i: given for part in gathered for i, given in part.items()}
        return [answers[i] for i in range(n_items)]


def validate(mllm: ToolLLM, validation: ValidationSet, rank: int, world_size: int, is_parted: bool) -> dict[str, float]:
    """Answer, score, and return the same metrics on every rank; `SCORE_KEY` is among them unless the set is empty.

    The ends of its interval are the means of the tasks' ends: wide enough however the tasks hang together.

    Args:
        mllm: the module that is trained.
        validation: what to answer.
        rank, world_size: of this worker.
        is_parted: ZeRO-3 gathers weights in every forward pass, so all ranks must make the same passes, though each
            answers its own questions.
    """
    metrics: dict[str, float] = {}
    scores: list[Estimate] = []
    with _gathered_head(mllm) if is_parted else nullcontext(), Lockstep(mllm) if is_parted else nullcontext() as steps:
        group = _Group(rank, world_size, validation.batch_size, steps)
        if validation.records and validation.names_tools:
            selection = _validate_questions(mllm, validation, group)
            metrics |= _name_scores(selection)
            scores.append(selection.groups["overall"].acc)
        if validation.records and validation.cards:
            scores.append(_validate_retrieval(mllm, validation, group))
            metrics[RETRIEVAL_KEY] = scores[-1].value
        if validation.dialogues:
            spoken = _validate_dialogues(mllm, validation, group)
            metrics |= {f"val/dialogues/{name}": value for name, value in spoken.headline().items()}
            scores.append(spoken.groups["all"].means["sr"])
    if scores:
        metrics[SCORE_KEY] = float(np.mean([score.value for score in scores]))
        metrics[SCORE_LOW_KEY] = float(np.mean([score.low for score in scores]))
        metrics[SCORE_HIGH_KEY] = float(np.mean([score.high for score in scores]))
    return metrics


def _validate_questions(mllm: ToolLLM, validation: ValidationSet, group: _Group) -> SelectionScores:
    trie = ChoiceTrie(validation.tool_ids, mllm.tokenizer)

    def answer(chosen: Sequence[int]) -> list[list[str]]:
        prompts = [Prompt(validation.prompt_ids[i], validation.media[i]) for i in chosen]
        return [[render_target(tool.tool_id)] for tool in greedy_tools(mllm, prompts, trie)]

    responses = group.share_out(answer, len(validation.records))
    return score_records(validation.records, responses, validation.tool_ids)


def _validate_retrieval(mllm: ToolLLM, validation: ValidationSet, group: _Group) -> Estimate:
    """Share of the questions whose nearest card, of the whole catalogue's, is a right tool's."""

    def encode(chosen: Sequence[int]) -> list[np.ndarray]:
        return list(encode_vectors(mllm, [Prompt(validation.cards[i]) for i in chosen]))

    cards = np.stack(group.share_out(encode, len(validation.cards)))  # [K, D]

    def answer(chosen: Sequence[int]) -> list[str]:
        prompts = [Prompt(validation.prompt_ids[i], validation.media[i]) for i in chosen]
        nearest = compare_with_cards(encode_vectors(mllm, prompts), cards).argmax(axis=1)
        return [validation.tool_ids[tool] for tool in nearest]

    answers = group.share_out(answer, len(validation.records))
    hits = [tool in record.valid_tool_ids for record, tool in zip(validation.records, answers, strict=True)]
    return estimate_proportion(np.array(hits, dtype=np.float64))


def _validate_dialogues(mllm: ToolLLM, validation: ValidationSet, group: _Group) -> DialogueScores:
    def respond(chosen: Sequence[int]) -> list[list[str]]:
        return generate_dialogue(
            mllm,
            [validation.dialogue_ids[i] for i in chosen],
            [validation.dialogues[i].turns for i in chosen],
            validation.turn_max_new_tokens,
        )

    turns = group.share_out(respond, len(validation.dialogues))
    return score_dialogues(validation.dialogues, turns, validation.seen_tool_ids)


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
