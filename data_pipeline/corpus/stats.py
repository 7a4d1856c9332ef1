"""Counts over a corpus, as the manifest and the report hold them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from data_pipeline.records.catalog import UNKNOWN_TOOL_ID, ToolCatalog
from data_pipeline.records.dialogue import count_calls, has_history
from data_pipeline.records.schema import AmbiguityType, Modality, ToolRecord


def count_split(records: Sequence[ToolRecord]) -> dict[str, Any]:
    """Questions of one split by kind; `rows` counts (question, right answer) pairs, as the papers count."""
    modality = Counter(record.modality for record in records)
    ambiguity = Counter(record.ambiguity_type for record in records)
    return {
        "questions": len(records),
        "rows": sum(len(record.valid_tool_ids) for record in records),
        "by_modality": {kind.value: modality[kind] for kind in Modality},
        "by_ambiguity_type": {kind.value: ambiguity[kind] for kind in AmbiguityType},
        "one_to_one": sum(len(record.valid_tool_ids) == 1 for record in records),
        "one_to_many": sum(len(record.valid_tool_ids) > 1 for record in records),
        "unknown": sum(record.valid_tool_ids == (UNKNOWN_TOOL_ID,) for record in records),
        "distinct_media": len({record.media_sha256 or record.media_uri for record in records if record.has_media}),
    }


def count_tools(by_split: Mapping[str, Sequence[ToolRecord]], catalog: ToolCatalog) -> dict[str, int]:
    """How far the splits cover the catalogue."""
    used = {
        split: {tool_id for record in records for tool_id in record.valid_tool_ids}
        for split, records in by_split.items()
    }
    unseen = used["test"] - used["train"]
    return {
        "catalog": len(catalog),
        **{f"in_{split}": len(tool_ids) for split, tool_ids in used.items()},
        "in_test_but_not_in_train": len(unseen),
        "test_questions_without_a_seen_tool": sum(
            used["train"].isdisjoint(record.valid_tool_ids) for record in by_split["test"]
        ),
    }


def count_dialogues(by_split: Mapping[str, Sequence[ToolRecord]]) -> dict[str, dict[str, int]]:
    """The dialogues of each split by kind; {} for a corpus without dialogues.

    A tool is seen if a dialogue of the training split calls it; a dialogue with any other tool counts as unseen.
    """
    dialogues = {split: [record for record in records if record.is_dialogue] for split, records in by_split.items()}
    if not any(dialogues.values()):
        return {}
    seen = {tool_id for record in dialogues["train"] for tool_id in record.valid_tool_ids} | {UNKNOWN_TOOL_ID}
    return {split: _count_kinds(records, seen) for split, records in dialogues.items()}


def _count_kinds(dialogues: Sequence[ToolRecord], seen: set[str]) -> dict[str, int]:
    n_calls = [count_calls(record.turns) for record in dialogues]
    n_seen = sum(
        calls > 0 and seen.issuperset(record.valid_tool_ids) for calls, record in zip(n_calls, dialogues, strict=True)
    )
    return {
        "dialogues": len(dialogues),
        "single_call": n_calls.count(1),
        "chain": sum(calls > 1 for calls in n_calls),
        "no_tool": n_calls.count(0),
        "with_history": sum(has_history(record.instruction) for record in dialogues),
        "seen_tools": n_seen,
        "unseen_tools": sum(calls > 0 for calls in n_calls) - n_seen,
    }
