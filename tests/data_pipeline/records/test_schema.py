"""The record: its rules, and that a row of the Parquet schema gives it back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from data_pipeline.errors import InputError
from data_pipeline.records.schema import CORPUS_SCHEMA, AmbiguityType, Modality, ToolRecord, Turn


def record(**changes: Any) -> ToolRecord:
    fields: dict[str, Any] = {
        "record_id": "r1",
        "source": "jsonl",
        "modality": Modality.IMAGE,
        "instruction": "  Improve this \u2028 picture ",
        "valid_tool_ids": ("b/two", "a/one"),
        "media_uri": "image/1.png",
        "media_sha256": "ab" * 32,
        "ambiguity_type": AmbiguityType.QUALITY,
        "candidate_tool_ids": ("a/one", "b/two", "c"),
        "turns": (Turn("human", 'hi "there"'), Turn("assistant", "ünïcode\n")),
        "source_index": 0,
        "split": "test",
    }
    return ToolRecord(**fields | changes)


@pytest.mark.parametrize(
    "original",
    [
        record(),
        record(modality=Modality.TEXT, media_uri="", media_sha256="", turns=(), candidate_tool_ids=()),
        record(source_index=None, split="", ambiguity_type=AmbiguityType.NONE, media_sha256=""),
        record(source_index=1432, modality=Modality.VIDEO),
    ],
)
def test_a_row_gives_the_record_back(original: ToolRecord) -> None:
    table = pa.Table.from_pylist([original.to_row()], schema=CORPUS_SCHEMA)
    assert ToolRecord.from_row(table.to_pylist()[0]) == original
    assert set(original.to_row()) == set(CORPUS_SCHEMA.names)


def test_rows_of_numpy_batches_are_read_too() -> None:
    """Ray Data gives lists as arrays."""
    original = record()
    row = original.to_row()
    row |= {key: np.array(row[key], dtype=object) for key in ("valid_tool_ids", "candidate_tool_ids")}
    row["source_index"] = np.int64(row["source_index"])
    again = ToolRecord.from_row(row)
    assert again == original
    assert type(again.valid_tool_ids[0]) is str


def test_words_and_answers_keep_their_form_and_order() -> None:
    assert record().instruction == "  Improve this \u2028 picture "
    assert record().valid_tool_ids == ("b/two", "a/one")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"instruction": " \n\t"}, "the instruction is empty"),
        ({"valid_tool_ids": ()}, "no tool is named"),
        ({"valid_tool_ids": ("a", "b", "a")}, "listed twice"),
        ({"media_uri": ""}, "modality 'image' with media_uri ''"),
        ({"modality": Modality.TEXT}, "modality 'text' with media_uri 'image/1.png'"),
    ],
)
def test_a_record_that_makes_no_sense_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        record(**changes)
    assert "record 'r1' of 'jsonl'" in str(error.value), "says which record"


def test_what_follows_from_the_fields() -> None:
    assert record().is_ambiguous
    assert not record(ambiguity_type=AmbiguityType.NONE).is_ambiguous
    assert record().has_media
    assert not record(modality=Modality.TEXT, media_uri="").has_media


def test_ambiguity_types_stand_in_the_order_of_the_released_codes() -> None:
    """MLLM-Tool section 3.2; the released files number them 1 to 5."""
    order = ["domains", "categories", "quality", "conditions", "others"]
    assert [kind.value for kind in AmbiguityType][:5] == order
