"""Counts over a corpus, as the manifest and the report hold them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from data_pipeline.catalog import UNKNOWN_TOOL_ID, ToolCatalog
from data_pipeline.schema import AmbiguityType, Modality, ToolRecord


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
