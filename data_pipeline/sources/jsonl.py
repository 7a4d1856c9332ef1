"""A user's own records beside a catalogue. Faults are errors that name the line, as the user can mend them.

Each row is an object::

    {"instruction": "What is in this picture?", "media": "photos/1.jpg", "tools": ["my/captioner"],
     "modality": "image", "ambiguity": "none", "candidates": [], "turns": [], "split": "train"}

Only `instruction` and `tools` are required; `media` is needed unless the record is text only; null is the same as
absent. What `generate` adds (`records/checks.py`) may be there.

A record with `turns` is a dialogue: `instruction` is the whole prompt, turns are ["assistant", ...],
["observation", ...], ["assistant", ...].

Rows in the form of another trainer (`FORMS`) are known by their keys and mapped; what cannot be is rejected.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.errors import InputError
from data_pipeline.locations import Location
from data_pipeline.records.catalog import CATALOG_FILE, Tool, ToolCatalog
from data_pipeline.records.checks import COLUMNS, MEDIA_LICENCE
from data_pipeline.records.dialogue import read_turns
from data_pipeline.records.schema import SPLITS, AmbiguityType, Modality, ToolRecord, Turn
from data_pipeline.records.text import check_encodable, read_text
from data_pipeline.sources.alpaca import parse_alpaca
from data_pipeline.sources.chat import Chat, KnownTools, build_record
from data_pipeline.sources.openai import parse_openai
from data_pipeline.sources.reading import (
    Rejected,
    SourceReading,
    UncutError,
    catalog_with_unknown,
    check_row_texts,
    find_dropped,
    join_line_breaks,
    relative_media_uri,
)
from data_pipeline.sources.rows import RowRange, SourceRow, cut_rows, read_range, read_rows
from data_pipeline.sources.sharegpt import parse_sharegpt

SOURCE = "jsonl"
LICENCE = "the user's own data; terms not stated"
FIELDS = ("instruction", "media", "modality", "tools", "ambiguity", "candidates", "turns", "split")
FORMS: dict[str, tuple[tuple[str, ...], Callable[[Mapping[str, Any]], Chat]]] = {  # keys that tell a form; its reader
    "sharegpt": (("conversations",), parse_sharegpt),
    "openai": (("messages", "completion"), parse_openai),
    "alpaca": (("output",), parse_alpaca),
}
EXTENSIONS = {
    Modality.IMAGE: (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"),
    Modality.AUDIO: (".wav", ".mp3", ".flac", ".ogg", ".opus", ".m4a", ".aac"),
    Modality.VIDEO: (".mp4", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".m4v"),
}


def read_jsonl(path: Path, media_root: Location | None, catalog: Path | None = None, form: str = "") -> SourceReading:
    """Open a file of records.

    Args:
        path: the file: JSON Lines, a JSON list, CSV or Parquet (`read_rows`).
        media_root: folder that `media` is relative to; default: the file's folder.
        catalog: `catalog.jsonl` (`Tool` entries) or a text file with one tool id a line; default: `catalog.jsonl`, then
            `catalog.txt` beside the records. Records in another trainer's form need none: the tools that they offer
            and call are added.
        form: one of `FORMS`, which all rows have and which names the source; "" = told row by row.

    Raises:
        InputError: a file is missing; (while iterating) it is not well formed, or one of the user's own rows is
            malformed or names a tool not in the catalogue.
    """
    if not path.is_file():
        raise InputError(f"{form or SOURCE}: no file {path}; give the path of the file with the records.")
    found = catalog if catalog is not None else _find_catalog(path)
    given = None if found is None else load_catalog(found)
    reading = SourceReading(
        name=form or SOURCE,
        licence=LICENCE,
        catalog=ToolCatalog(()),
        media_root=media_root if media_root is not None else path.parent,
        items=(),
    )
    if given is not None:
        reading.catalog = given
    reading.items = _read_items(reading, path, form, given, read_rows(path))
    if not form and given is not None:
        reading.pieces = [_Piece(path, path.absolute(), rows, given) for rows in cut_rows(path)]
    return reading


@dataclass(frozen=True)
class _Piece:
    """Some rows of a file. Those of the user's own need nothing of the rows before; others' bring tools that do."""

    path: Path  # as the user wrote it
    file: Path  # the same, wherever it is read
    rows: RowRange
    catalog: ToolCatalog

    def read(self) -> SourceReading:
        reading = SourceReading(SOURCE, LICENCE, self.catalog, None, ())
        rows = read_range(self.file, self.rows)
        reading.items = _read_items(reading, self.path, "", self.catalog, rows, is_piece=True)
        return reading


def _read_items(
    reading: SourceReading,
    path: Path,
    form: str,
    given: ToolCatalog | None,
    rows: Iterable[SourceRow],
    is_piece: bool = False,
) -> Iterator[ToolRecord | Rejected]:
    """The items of rows; at the end `reading` has what they count, and the tools that they bring."""
    known = KnownTools(given or ())
    for row in rows:
        where = f"{path}, {row.place}"
        row_form = form or _find_form(row.content)
        if row_form and is_piece:
            raise UncutError(where)
        if row_form:
            yield _parse_foreign(row, row_form, reading, known, where)
        elif given is None:
            raise InputError(
                f"{SOURCE}: no catalog.jsonl or catalog.txt beside {path}; write the tool ids there, one a line in "
                "catalog.txt, or name the catalogue with `catalog`."
            )
        else:
            dropped = find_dropped(row.content, where)
            yield _parse_own(row, reading, given, where) if dropped is None else dropped
            if dropped is None and row.content.get(MEDIA_LICENCE):
                reading.media_licences[str(row.content[MEDIA_LICENCE])] += 1
    reading.catalog = catalog_with_unknown(known.by_id.values())


def _find_catalog(path: Path) -> Path | None:
    beside = (path.parent / name for name in (CATALOG_FILE, "catalog.txt"))
    return next((file for file in beside if file.is_file()), None)


def load_catalog(path: Path) -> ToolCatalog:
    """Read a catalogue from `.jsonl` (tool entries) or from a text file (one tool id a line); adds "unknown"."""
    if path.name.removesuffix(".gz").endswith(".jsonl"):
        return catalog_with_unknown(ToolCatalog.load_jsonl(path))
    if not path.is_file():
        raise InputError(f"no tool catalogue at {path}; write one tool id a line there, or correct the path.")
    tools = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            tools.append(Tool(line.strip()))
        except InputError as error:
            raise InputError(f"{path}, line {number}: {error}") from error
    try:
        return catalog_with_unknown(tools)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _find_form(content: Any) -> str:
    """The form of another trainer that a row has, "" for the user's own."""
    if not isinstance(content, dict):
        return ""
    present = _drop_absent(content).keys()
    return next((form for form, (keys, _) in FORMS.items() if not present.isdisjoint(keys)), "")


def _parse_foreign(
    row: SourceRow, form: str, reading: SourceReading, known: KnownTools, where: str
) -> ToolRecord | Rejected:
    """Map a row of another trainer's form; its tools are added to the known ones."""
    try:
        if row.fault or not isinstance(row.content, dict):
            raise InputError(row.fault or "the row is no object")
        if row.content.get("kto_tag", row.content.get("label")) is False:
            raise InputError("the answer is marked as a bad one")
        record, brought = build_record(
            FORMS[form][1](_drop_absent(row.content)),
            f"{reading.name}/{row.number}",
            reading.name,
            known,
            reading.repairs,
        )
        check_row_texts((record.instruction, *(turn.text for turn in record.turns)))
    except InputError as error:
        return Rejected(str(error), where)
    known.add(brought)
    return record


def _parse_own(row: SourceRow, reading: SourceReading, catalog: ToolCatalog, where: str) -> ToolRecord:
    try:
        if row.fault:
            raise InputError(f"{row.fault}; write a plain object.")
        record = _parse_row(row.content, f"{SOURCE}/{row.number}", reading)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    for tool_id in record.valid_tool_ids + record.candidate_tool_ids:
        if tool_id not in catalog:
            raise InputError(f"{where}: tool {tool_id!r} is not in the catalogue; add it there or correct the name.")
    return record


def _drop_absent(row: Mapping[str, Any]) -> dict[str, Any]:
    """Without the keys whose value is null, or NaN as pandas writes it into Parquet."""
    return {key: value for key, value in row.items() if value is not None and value == value}


def _parse_row(content: Any, record_id: str, reading: SourceReading) -> ToolRecord:
    if not isinstance(content, dict):
        raise InputError(f"a {type(content).__name__} instead of an object; write one JSON object a line.")
    row = _drop_absent(content)
    unknown = sorted(set(row) - set(FIELDS) - set(COLUMNS))
    if unknown:
        raise InputError(f"unknown key {unknown[0]!r}; the keys are {', '.join(FIELDS)}.")
    instruction = _text(row, "instruction")
    check_encodable(instruction)
    media = _text(row, "media")
    media_uri = relative_media_uri(media) if media else ""
    turns = _turns(row.get("turns", []))
    if turns and media:
        raise InputError("a dialogue has a medium of its own; name its files in the prompt and leave media out.")
    if turns:
        instruction, *texts = join_line_breaks([instruction, *(turn.text for turn in turns)], reading.repairs)
        turns = tuple(Turn(turn.role, text) for turn, text in zip(turns, texts, strict=True))
        read_turns(turns)
    return ToolRecord(
        record_id=record_id,
        source=SOURCE,
        modality=_choice(row, "modality", [m.value for m in Modality], _sniff_modality, Modality),
        instruction=instruction,
        valid_tool_ids=_names(row, "tools"),
        media_uri=media_uri,
        ambiguity_type=_choice(row, "ambiguity", [a.value for a in AmbiguityType], _no_ambiguity, AmbiguityType),
        candidate_tool_ids=_names(row, "candidates"),
        turns=turns,
        split=_choice(row, "split", list(SPLITS), lambda _: "", str),
    )


def _text(row: dict[str, Any], key: str) -> str:
    value = row.get(key, "")
    if not isinstance(value, str):
        raise InputError(f"{key} is {reprlib.repr(value)}; give a string.")
    return value


def _names(row: dict[str, Any], key: str) -> tuple[str, ...]:
    value = row.get(key, [])
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise InputError(f"{key} is {reprlib.repr(value)}; give a list of tool ids.")
    return tuple(dict.fromkeys(name.strip() for name in value))


def _choice(row: dict[str, Any], key: str, allowed: list[str], default: Any, kind: Any) -> Any:
    """The value of an optional key as `kind`, or `default(row)` where it is absent."""
    value = row.get(key, "")
    if value == "":
        return default(row)
    if value not in allowed:
        raise InputError(f"{key} is {reprlib.repr(value)}; it must be one of {', '.join(allowed)}.")
    return kind(value)


def _no_ambiguity(row: dict[str, Any]) -> AmbiguityType:
    return AmbiguityType.NONE


def _sniff_modality(row: dict[str, Any]) -> Modality:
    media = _text(row, "media")
    if not media:
        return Modality.TEXT
    for modality, extensions in EXTENSIONS.items():
        if media.lower().endswith(extensions):
            return modality
    raise InputError(f'the modality of media {media!r} does not show in its extension; add "modality".')


def _turns(value: Any) -> tuple[Turn, ...]:
    """The turns of a dialogue, given as [[role, text], ...]."""
    is_pairs = isinstance(value, list) and all(
        isinstance(turn, list) and len(turn) == 2 and all(isinstance(part, str) for part in turn) for turn in value
    )
    if not is_pairs:
        raise InputError("turns must be a list of [role, text] pairs.")
    for _, text in value:
        check_encodable(text)
    return tuple(Turn(role, text) for role, text in value)
