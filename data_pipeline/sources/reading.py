"""What reading a source yields: records, rejected items and counts of the defects that were mended on the way."""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from data_pipeline.errors import InputError
from data_pipeline.locations import Location
from data_pipeline.records.catalog import UNKNOWN_TOOL_ID, Tool, ToolCatalog
from data_pipeline.records.checks import DROPPED, find_drop
from data_pipeline.records.keys import question_keys
from data_pipeline.records.schema import AmbiguityType, ToolRecord
from data_pipeline.records.text import check_encodable

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/|data:")  # of the web, of a drive, or the data themselves


@dataclass(frozen=True)
class Rejected:
    """An item of a source that cannot become a record.

    Attributes:
        reason: what is wrong, the same words for the same fault, so that reasons can be counted.
        where: file and position.
    """

    reason: str
    where: str


class UncutError(Exception):
    """A piece of a source cannot be read without those before it."""


class SourcePiece(Protocol):
    """Some consecutive items of a source; goes to another process."""

    def read(self) -> SourceReading:
        """Open it there; iterating raises `UncutError` where the source has to be read as a whole after all."""
        ...


@dataclass(frozen=True)
class Counted:
    """What reading has counted beside the items."""

    repairs: Counter[str]
    media_licences: Counter[str]


@dataclass
class SourceReading:
    """One pass over a source.

    Attributes:
        name: of the source.
        licence: terms of its data, as far as they are known; those of its media may stand in `media_licences`.
        catalog: every tool that an answer may name; complete once `items` is exhausted.
        media_root: folder that `media_uri`s are relative to, or None where there are no media files.
        items: records and rejected items, in source order.
        repairs: what was mended, counted by kind; complete once `items` is exhausted.
        merged_source_indexes: test positions folded into an earlier record with the same question, by that
            record's `source_index`; complete once `items` is exhausted.
        parts: the readings that this one unites; () for a single source.
        n_expected: how many items there will be, where that is known before they are read.
        pieces: the items again, cut so that several processes can read them; () where they cannot. What they count has
            to be added (`add`).
        media_licences: rows by the terms of their media, where the source gives them row by row; complete once `items`
            is exhausted.
    """

    name: str
    licence: str
    catalog: ToolCatalog
    media_root: Location | None
    items: Iterable[ToolRecord | Rejected]
    repairs: Counter[str] = field(default_factory=Counter)
    merged_source_indexes: dict[int, list[int]] = field(default_factory=dict)
    parts: tuple[SourceReading, ...] = ()
    n_expected: int | None = None
    pieces: Sequence[SourcePiece] = ()
    media_licences: Counter[str] = field(default_factory=Counter)

    @property
    def counted(self) -> Counted:
        """What was counted so far."""
        return Counted(self.repairs, self.media_licences)

    def add(self, counted: Counted) -> None:
        """Add what was counted while a piece was read."""
        self.repairs.update(counted.repairs)
        self.media_licences.update(counted.media_licences)

    @property
    def licences(self) -> dict[str, str]:
        """Name of a source -> terms of its data."""
        return {reading.name: reading.all_terms for reading in self.parts or (self,)}

    @property
    def all_terms(self) -> str:
        """Terms of the data and the media."""
        listed = ", ".join(f"{terms} ({n} rows)" for terms, n in sorted(self.media_licences.items()))
        return f"{self.licence}; media: {listed}" if listed else self.licence

    def __iter__(self) -> Iterator[ToolRecord | Rejected]:
        return iter(self.items)


def merge_same_questions(
    items: Iterable[ToolRecord | Rejected], join: Callable[[ToolRecord, ToolRecord], ToolRecord]
) -> Iterator[ToolRecord | Rejected]:
    """One record per (split, medium, question), in the order of its first row; then what was rejected.

    Args:
        items: of the source's rows, in their order.
        join: what becomes of the record at hand and a further one with its question; it may count the merge.
    """
    records: dict[tuple[str, tuple[str, str]], ToolRecord] = {}
    rejected: list[Rejected] = []
    for item in items:
        if isinstance(item, Rejected):
            rejected.append(item)
            continue
        key = (item.split, question_keys(item)[0])
        records[key] = join(records[key], item) if key in records else item
    yield from records.values()
    yield from rejected


def merge_records(first: ToolRecord, other: ToolRecord) -> ToolRecord:
    """Join two records of one question: every tool of both, in order; of two dialogues the first stands.

    Where one says "unknown" and the other names tools, the tools stand: a question with an answer is answerable.
    """
    if first.is_dialogue:  # its tools are those that its turns call
        return first
    tool_ids = tuple(dict.fromkeys(first.valid_tool_ids + other.valid_tool_ids))
    if first.valid_tool_ids == (UNKNOWN_TOOL_ID,) or other.valid_tool_ids == (UNKNOWN_TOOL_ID,):
        tool_ids = tuple(tool_id for tool_id in tool_ids if tool_id != UNKNOWN_TOOL_ID) or (UNKNOWN_TOOL_ID,)
    ambiguity = first.ambiguity_type if first.is_ambiguous else other.ambiguity_type
    candidates = tuple(dict.fromkeys(first.candidate_tool_ids + other.candidate_tool_ids))
    return replace(
        first,
        valid_tool_ids=tool_ids,
        ambiguity_type=AmbiguityType(ambiguity),
        candidate_tool_ids=candidates,
        media_sha256=first.media_sha256 or other.media_sha256,
    )


def relative_media_uri(path: str, prefix: str = "") -> str:
    """Normalise a media path to one below the media root.

    Args:
        path: as the source gives it, "/" between its parts.
        prefix: folder that the source leaves out.

    Raises:
        InputError: the path is empty, absolute, an address, or climbs out of the media root.
    """
    check_encodable(path)
    if _ADDRESS.match(path):
        raise InputError(
            f"media {path[:80]!r} is an address; fetch the file into the media root and give its path below it."
        )
    uri = posixpath.normpath(posixpath.join(prefix, path)) if path.strip() else ""
    if not uri or posixpath.isabs(path) or uri == "." or uri.split("/")[0] == ".." or "\\" in path or "\0" in path:
        raise InputError(f"media path {path[:200]!r} does not lie below the media root; give a relative path with '/'.")
    return uri


def catalog_with_unknown(tools: Iterable[Tool]) -> ToolCatalog:
    """The catalogue plus the answer "none of them", which every catalogue has."""
    by_id = list(tools)
    if all(tool.tool_id != UNKNOWN_TOOL_ID for tool in by_id):
        by_id.append(Tool(UNKNOWN_TOOL_ID, description="None of the tools in the catalogue solves the question."))
    return ToolCatalog(by_id)


def join_line_breaks(texts: Sequence[str], repairs: Counter[str]) -> list[str]:
    """The texts of one record with "\\n" for every "\\r\\n", counted as a repair; the protocol knows no other."""
    joined = [text.replace("\r\n", "\n") for text in texts]
    if joined != list(texts):
        repairs["line breaks of a dialogue (CR LF) read as LF"] += 1
    return joined


def check_row_texts(texts: Iterable[str]) -> None:
    """InputError, in words that are the same for every row, where a text of a row cannot be written as UTF-8."""
    try:
        for text in texts:
            check_encodable(text)
    except InputError as error:
        raise InputError("the text holds a lone surrogate") from error


def find_dropped(row: object, where: str) -> Rejected | None:
    """A row of `generate` that a person dropped, with that person's note at its place; None for one that stays."""
    note = find_drop(row) if isinstance(row, dict) else None
    return None if note is None else Rejected(DROPPED, f"{where}: {note}" if note else where)


def require_folder(path: Path | None, what: str) -> Path:
    if path is None or not path.is_dir():
        raise InputError(f"{what}: {path} is not a folder; give an existing one.")
    return path
