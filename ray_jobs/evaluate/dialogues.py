"""Evaluation of the test split's dialogues: decode them turn by turn on Ray Data actors and score them."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from data_pipeline import storage
from data_pipeline.batches.encoding import encode_dialogue
from data_pipeline.locations import Location
from data_pipeline.records.schema import ToolRecord, Turn
from model.decode.dialogue import generate_dialogue
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
        scores: of these.
        n_too_long: test dialogues that were left out because they are longer than training takes them.
        decode_s: seconds.
    """

    records: list[ToolRecord]
    scores: DialogueScores
    n_too_long: int
    decode_s: float

    def to_json(self) -> dict[str, Any]:
        """Group -> its scores, and the counts."""
        counts = {"n_dialogues": len(self.records), "n_too_long": self.n_too_long, "decode_s": round(self.decode_s, 2)}
        return {**self.scores.to_json(), **counts}

    def to_markdown(self) -> str:
        """The section of the report."""
        left_out = f", {self.n_too_long} more left out: longer than train.max_dialogue_tokens" * bool(self.n_too_long)
        table = render_dialogue_markdown(self.scores)
        return f"## Dialogues\n\n{len(self.records)} test dialogues{left_out}.\n\n{table}\n"

    def write(self, folder: Location) -> None:
        """Responses and gold texts as `score --protocol gpt4tools` takes them, and the table."""
        responses = zip(self.records, self.scores.responses, strict=True)
        _write_lines(folder / PREDICTIONS_FILE, [{"id": r.record_id, "response": text} for r, text in responses])
        gold = [{"id": record.record_id, "output": join_gold(record.turns)} for record in self.records]
        _write_lines(folder / GOLD_FILE, gold)
        storage.write_file(folder / "dialogues.md", render_dialogue_markdown(self.scores) + "\n")


class DialogueDecoder:
    """Ray Data actor: a built model that answers batches of dialogues."""

    def __init__(self, model: TrainedModel) -> None:
        self._options = model.options
        self._mllm = model.build()

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows = batch.to_pylist()
        texts = generate_dialogue(
            self._mllm,
            [np.array(row["prompt_ids"], dtype=np.int32) for row in rows],
            [[Turn(role, text) for role, text in row["turns"]] for row in rows],
            self._options.turn_max_new_tokens,
        )
        return pa.table({"position": batch["position"], "texts": pa.array(texts, pa.list_(pa.string()))})


def evaluate_dialogues(
    model: TrainedModel, records: Sequence[ToolRecord], max_tokens: int, seen_tool_ids: Collection[str]
) -> DialogueEvaluation | None:
    """Decode and score dialogues.

    Args:
        model: what answers.
        records: dialogues of the test split.
        max_tokens: longer ones, prompt and gold turns together, are left out and counted, as in training.
        seen_tool_ids: the tools that training dialogues call.

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
            "prompt_ids": pa.array(prompts, pa.list_(pa.int32())),
            "turns": pa.array(turns, pa.list_(pa.list_(pa.string()))),
        }
    )
    # dialogues of as many turns side by side, and of like length: less padding, and few rows that wait for others
    order = np.lexsort(([len(prompt) for prompt in prompts], [len(each) for each in turns]))
    start = time.perf_counter()
    decoded = decode_on_actors(DialogueDecoder, model, table.take(order), model.options, "dialogues")
    seconds = time.perf_counter() - start
    scores = score_dialogues(usable, [row["texts"] for row in decoded], seen_tool_ids)
    return DialogueEvaluation(usable, scores, len(records) - len(usable), seconds)


def _write_lines(path: Location, lines: Sequence[dict[str, str]]) -> None:
    storage.write_file(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
