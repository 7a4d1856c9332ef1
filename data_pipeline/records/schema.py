"""The multimodal instruction record: one distinct question with every tool that answers it (DESIGN 4.3)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import pyarrow as pa

from data_pipeline.errors import InputError

SCHEMA_VERSION = 1
SPLITS = ("train", "val", "test")
ASSISTANT = "assistant"  # the two roles of a dialogue's turns
OBSERVATION = "observation"


class Modality(StrEnum):
    TEXT = "text"
    IMAGE = "image"
    AUDIO = "audio"
    VIDEO = "video"


class AmbiguityType(StrEnum):
    """Why the words alone do not decide (MLLM-Tool section 3.2); the order is that of the released codes 1 to 5."""

    DOMAINS = "domains"
    CATEGORIES = "categories"
    QUALITY = "quality"
    CONDITIONS = "conditions"
    OTHERS = "others"
    NONE = "none"


@dataclass(frozen=True)
class Turn:
    """One turn of a dialogue; role is ASSISTANT or OBSERVATION. The texts joined are the whole response."""

    role: str
    text: str


@dataclass(frozen=True)
class ToolRecord:
    """One distinct question. `instruction` is kept exactly as it came: nothing is stripped.

    Attributes:
        record_id: unique within a corpus.
        source: name of the source that it came from.
        modality: of the medium, or TEXT.
        instruction: the user's words.
        media_uri: path relative to the media root; "" for TEXT.
        media_sha256: hash of the medium's bytes; "" for TEXT or where the file is absent.
        valid_tool_ids: every right answer, distinct, in source order; not empty.
        ambiguity_type: why the words alone do not decide.
        candidate_tool_ids: every tool that the words alone allow; () where the source does not say.
        turns: of a dialogue, what follows the prompt that `instruction` holds whole: "assistant" turns, which bear
            loss, and "observation" turns between them, which do not; () for tool selection.
        source_index: 0-based position in the released test file, or None.
        split: the split that the source prescribes, or "" if it leaves it to us.
    """

    record_id: str
    source: str
    modality: Modality
    instruction: str
    valid_tool_ids: tuple[str, ...]
    media_uri: str = ""
    media_sha256: str = ""
    ambiguity_type: AmbiguityType = AmbiguityType.NONE
    candidate_tool_ids: tuple[str, ...] = ()
    turns: tuple[Turn, ...] = ()
    source_index: int | None = None
    split: str = ""

    def __post_init__(self) -> None:
        where = f"record {self.record_id!r} of {self.source!r}"
        if not self.instruction.strip():
            raise InputError(f"{where}: the instruction is empty; give the user's words.")
        if not self.valid_tool_ids:
            raise InputError(f"{where}: no tool is named; give at least one valid tool id, or 'unknown'.")
        if len(set(self.valid_tool_ids)) != len(self.valid_tool_ids):
            raise InputError(f"{where}: a valid tool id is listed twice; list each once.")
        if (self.modality is Modality.TEXT) != (self.media_uri == ""):
            raise InputError(
                f"{where}: modality {self.modality.value!r} with media_uri {self.media_uri!r}; "
                "text records have no media_uri, all others need one."
            )

    @property
    def is_ambiguous(self) -> bool:
        return self.ambiguity_type is not AmbiguityType.NONE

    @property
    def has_media(self) -> bool:
        return self.modality is not Modality.TEXT

    @property
    def is_dialogue(self) -> bool:
        return bool(self.turns)

    def to_row(self) -> dict[str, Any]:
        """The record as a row of `CORPUS_SCHEMA`."""
        return {
            "record_id": self.record_id,
            "source": self.source,
            "modality": self.modality.value,
            "instruction": self.instruction,
            "media_uri": self.media_uri,
            "media_sha256": self.media_sha256,
            "valid_tool_ids": list(self.valid_tool_ids),
            "ambiguity_type": self.ambiguity_type.value,
            "candidate_tool_ids": list(self.candidate_tool_ids),
            "turns": json.dumps([[turn.role, turn.text] for turn in self.turns]),
            "source_index": -1 if self.source_index is None else self.source_index,
            "split": self.split,
        }

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> ToolRecord:
        """Read a row of `CORPUS_SCHEMA` back; lists may be numpy arrays."""
        source_index = int(row["source_index"])
        return cls(
            record_id=str(row["record_id"]),
            source=str(row["source"]),
            modality=Modality(row["modality"]),
            instruction=str(row["instruction"]),
            media_uri=str(row["media_uri"]),
            media_sha256=str(row["media_sha256"]),
            valid_tool_ids=tuple(str(tool_id) for tool_id in row["valid_tool_ids"]),
            ambiguity_type=AmbiguityType(row["ambiguity_type"]),
            candidate_tool_ids=tuple(str(tool_id) for tool_id in row["candidate_tool_ids"]),
            turns=tuple(Turn(role, text) for role, text in json.loads(row["turns"])),
            source_index=None if source_index < 0 else source_index,
            split=str(row["split"]),
        )


CORPUS_SCHEMA = pa.schema(
    [
        ("record_id", pa.string()),
        ("source", pa.string()),
        ("modality", pa.string()),
        ("instruction", pa.string()),
        ("media_uri", pa.string()),
        ("media_sha256", pa.string()),
        ("valid_tool_ids", pa.list_(pa.string())),
        ("ambiguity_type", pa.string()),
        ("candidate_tool_ids", pa.list_(pa.string())),
        ("turns", pa.string()),
        ("source_index", pa.int64()),
        ("split", pa.string()),
    ]
)
