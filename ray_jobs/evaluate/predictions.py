"""Predictions as files that `score` takes, numbered as the released test files are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline import storage
from data_pipeline.records.catalog import ToolCatalog
from data_pipeline.records.prompts import render_target
from data_pipeline.records.schema import ToolRecord
from data_pipeline.sources.apibench import SOURCE as APIBENCH
from model.scoring.gorilla import render_api_call
from model.scoring.selection import parse_answer


def write_predictions(
    folder: Path,
    records: Sequence[ToolRecord],
    decoded: Sequence[dict[str, Any]],
    positions: Mapping[str, int],
    merged: Mapping[str, Sequence[int]],
    catalog: ToolCatalog,
) -> None:
    """Write `predictions.jsonl`, and for APIBench's questions `gorilla.jsonl` and `gorilla_free.jsonl`: calls of APIs.

    Args:
        folder: where to.
        records: the questions.
        decoded: what the actors gave for each.
        positions: record id -> its place among the questions of the test split.
        merged: source index -> other positions of the released test file that hold the same question.
        catalog: of the corpus.
    """
    lines: dict[str, list[dict[str, Any]]] = {"predictions": []}
    for record, row in zip(records, decoded, strict=True):
        index = positions[record.record_id] if record.source_index is None else record.source_index
        entries = {
            "predictions": {
                "record_id": record.record_id,
                "responses": [render_target(tool_id) for tool_id in row["tool_ids"]],
                "probabilities": [round(p, 6) for p in row["probabilities"]],
                "p_unknown": round(row["p_unknown"], 6),
                "free_response": row["free"],
                "shuffled_media_response": render_target(row["shuffled_media"]),
            }
        }
        if record.source == APIBENCH:
            named = parse_answer(row["free"])
            free = render_api_call(named, catalog) if named in catalog and named else row["free"]
            entries["gorilla"] = {"response": render_api_call(row["tool_ids"][0], catalog)}
            entries["gorilla_free"] = {"response": free}
        for number in (index, *merged.get(str(index), ())):
            for name, entry in entries.items():
                lines.setdefault(name, []).append({"index": number} | entry)
    for name, rows in lines.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        storage.write_file(folder / f"{name}.jsonl", text)
