"""Evaluation of the test split's dialogues: decode them turn by turn on Ray Data actors and score them.

Twice: freely, which is GPT4Tools' evaluation, and under the constraints of a served agent (`model.decode.turn`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from data_pipeline import storage
from data_pipeline.batches.cards import encode_card
from data_pipeline.batches.encoding import encode_dialogue
from data_pipeline.locations import Location
from data_pipeline.records.catalog import Tool, ToolCatalog
from data_pipeline.records.dialogue import find_files, parse_offered_tools
from data_pipeline.records.schema import ToolRecord, Turn
from model.decode.dialogue import generate_dialogue, write_dialogues
from model.decode.retrieval import encode_vectors
from model.decode.tree_cache import Prompt
from model.decode.turn_types import MEDIA_KINDS, TurnArgument, TurnLimits, TurnRequest, TurnTool
from model.decode.turn_writer import TurnWriter
from model.llm.backbone import load_tokenizer
from model.scoring.dialogues import DialogueScores, join_gold, score_dialogues
from model.scoring.tables import render_dialogue_markdown
from ray_jobs.evaluate.actors import TrainedModel, decode_on_actors

GOLD_FILE = "gold_dialogues.jsonl"
PREDICTIONS_FILE = "predictions_dialogues.jsonl"


@dataclass(frozen=True)
class DialogueEvaluation:
    """Dialogues that were decoded and scored.

    Attributes:
        records: the dialogues, N of them.
        scores: of these, freely written.
        n_too_long: test dialogues that were left out because they are longer than training takes them.
        decode_s: seconds.
        constrained: scores of the turns that were written under constraints; None where there are none.
    """

    records: list[ToolRecord]
    scores: DialogueScores
    n_too_long: int
    decode_s: float
    constrained: DialogueScores | None = None

    def to_json(self) -> dict[str, Any]:
        """Group -> its scores, and the counts."""
        counts = {"n_dialogues": len(self.records), "n_too_long": self.n_too_long, "decode_s": round(self.decode_s, 2)}
        constrained = {} if self.constrained is None else {"constrained": self.constrained.to_json()}
        return {**self.scores.to_json(), **constrained, **counts}

    def to_markdown(self) -> str:
        """The section of the report."""
        left_out = f", {self.n_too_long} more left out: longer than train.max_dialogue_tokens" * bool(self.n_too_long)
        table = render_dialogue_markdown(self.scores)
        text = f"## Dialogues\n\n{len(self.records)} test dialogues{left_out}.\n\n{table}\n"
        if self.constrained is not None:
            table = render_dialogue_markdown(self.constrained)
            text += f"\n### Under constraints, as an agent is served\n\n{table}\n"
        return text

    def write(self, folder: Location) -> None:
        """Responses and gold texts as `score --protocol gpt4tools` takes them, and the table."""
        responses = zip(self.records, self.scores.responses, strict=True)
        _write_lines(folder / PREDICTIONS_FILE, [{"id": r.record_id, "response": text} for r, text in responses])
        gold = [{"id": record.record_id, "output": join_gold(record.turns)} for record in self.records]
        _write_lines(folder / GOLD_FILE, gold)
        storage.write_file(folder / "dialogues.md", render_dialogue_markdown(self.scores) + "\n")
        if self.constrained is not None:
            storage.write_file(folder / "dialogues_constrained.md", render_dialogue_markdown(self.constrained) + "\n")


@dataclass(frozen=True)
class DialogueJob:
    """What an actor decodes with.

    Attributes:
        model: that answers.
        tools: call name -> entry of the catalogue.
        finds_cards: whether it was trained to find tools by their cards.
    """

    model: TrainedModel
    tools: Mapping[str, Tool]
    finds_cards: bool


class DialogueDecoder:
    """Ray Data actor: a built model that answers batches of dialogues, freely and under constraints."""

    def __init__(self, job: DialogueJob) -> None:
        self._job = job
        self._mllm = job.model.build()
        limit = job.model.options.turn_max_new_tokens
        self._writer = TurnWriter(self._mllm, TurnLimits(max_answer_tokens=limit))
        self._cards: dict[TurnTool, np.ndarray] = {}

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows = batch.to_pylist()
        turns = [[Turn(role, text) for role, text in row["turns"]] for row in rows]
        limit = self._job.model.options.turn_max_new_tokens
        prompt_ids = [np.array(row["prompt_ids"], dtype=np.int32) for row in rows]
        texts = generate_dialogue(self._mllm, prompt_ids, turns, limit)
        requests = [_build_request(row["prompt"], self._job.tools) for row in rows]
        constrained = write_dialogues(self._writer, requests, turns, list(map(self._find_cards, requests)))
        kind = pa.list_(pa.string())
        return pa.table(
            {
                "position": batch["position"],
                "texts": pa.array(texts, kind),
                "constrained": pa.array(constrained, kind),
            }
        )

    def _find_cards(self, request: TurnRequest) -> np.ndarray | None:
        """float32 [tools, D]: the vectors of what a prompt offers."""
        if not (self._job.finds_cards and request.tools):
            return None
        new = [tool for tool in request.tools if tool not in self._cards]
        if new:
            tokenizer = self._mllm.tokenizer
            prompts = [Prompt(encode_card(tokenizer, tool.name, tool.description)) for tool in new]
            self._cards.update(zip(new, encode_vectors(self._mllm, prompts), strict=True))
        return np.stack([self._cards[tool] for tool in request.tools])


def evaluate_dialogues(
    model: TrainedModel,
    records: Sequence[ToolRecord],
    max_tokens: int,
    seen_tool_ids: Collection[str],
    catalog: ToolCatalog,
    finds_cards: bool,
) -> DialogueEvaluation | None:
    """Decode and score dialogues.

    Args:
        model: what answers.
        records: dialogues of the test split.
        max_tokens: longer ones, prompt and gold turns together, are left out and counted, as in training.
        seen_tool_ids: the tools that training dialogues call.
        catalog: says what the tools that a prompt offers take and do.
        finds_cards: whether the model was trained with `train.loss.retrieval`.

    Returns:
        None if no dialogue can be used.
    """
    tokenizer = load_tokenizer(model.model_config["backbone"])
    encoded = [encode_dialogue(tokenizer, record.instruction, record.turns) for record in records]
    fits = [len(dialogue.prompt_ids) + len(dialogue.answers[0]) <= max_tokens for dialogue in encoded]
    usable = [record for record, fit in zip(records, fits, strict=True) if fit]
    if not usable:
        return None
    prompts = [dialogue.prompt_ids for dialogue, fit in zip(encoded, fits, strict=True) if fit]
    turns = [[[turn.role, turn.text] for turn in record.turns] for record in usable]
    table = pa.table(
        {
            "position": pa.array(range(len(usable)), pa.int64()),
            "prompt": pa.array([record.instruction for record in usable], pa.string()),
            "prompt_ids": pa.array(prompts, pa.list_(pa.int32())),
            "turns": pa.array(turns, pa.list_(pa.list_(pa.string()))),
        }
    )
    # dialogues of as many turns side by side, and of like length: less padding, and few rows that wait for others
    order = np.lexsort(([len(prompt) for prompt in prompts], [len(each) for each in turns]))
    start = time.perf_counter()
    job = DialogueJob(model, {tool.call_name: tool for tool in catalog}, finds_cards)
    decoded = decode_on_actors(DialogueDecoder, job, table.take(order), model, "dialogues")
    seconds = time.perf_counter() - start
    free, constrained = (
        score_dialogues(usable, [row[way] for row in decoded], seen_tool_ids) for way in ("texts", "constrained")
    )
    return DialogueEvaluation(usable, free, len(records) - len(usable), seconds, constrained)


def _build_request(prompt: str, tools: Mapping[str, Tool]) -> TurnRequest:
    """A dialogue's first turn as an agent would ask for it: its tools, and the files that were spoken of."""
    offered = parse_offered_tools(prompt)
    said = prompt.rpartition("Previous conversation:")[2]  # other people's prompts may have no such heading
    return TurnRequest(
        prompt=prompt,
        tools=tuple(_build_turn_tool(tools.get(name), name, usage) for name, usage in offered.items()),
        files=tuple(find_files(said)),
    )


def _build_turn_tool(tool: Tool | None, name: str, usage: str) -> TurnTool:
    """A tool of the catalogue takes what that says, another a text."""
    if tool is None:
        return TurnTool(name, (TurnArgument("text"),), usage)
    media = [argument.removesuffix("_path") for argument in tool.arguments] or [tool.input_modality]
    arguments = [TurnArgument(kind if kind in MEDIA_KINDS else "text") for kind in media]  # pyright: ignore[reportArgumentType]
    return TurnTool(name, tuple(arguments), tool.description)


def _write_lines(path: Location, lines: Sequence[dict[str, str]]) -> None:
    storage.write_file(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
