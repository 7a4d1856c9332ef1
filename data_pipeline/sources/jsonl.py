"""A user's own records: JSON Lines beside a catalogue. Faults are errors that name the line, as the user can mend them.

Each line is an object::

    {"instruction": "What is in this picture?", "media": "photos/1.jpg", "tools": ["my/captioner"],
     "modality": "image", "ambiguity": "none", "candidates": [], "turns": [], "split": "train"}

Only `instruction` and `tools` are required; `media` is needed unless the record is text only. A record with `turns` is
a dialogue: `instruction` is the whole prompt, turns are ["assistant", ...], ["observation", ...], ["assistant", ...].
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipeline.errors import InputError
from data_pipeline.locations import Location
from data_pipeline.records.catalog import CATALOG_FILE, Tool, ToolCatalog
from data_pipeline.records.dialogue import read_turns
from data_pipeline.records.schema import SPLITS, AmbiguityType, Modality, ToolRecord, Turn
from data_pipeline.sources.reading import (
    Rejected,
    SourceReading,
    catalog_with_unknown,
    check_encodable,
    relative_media_uri,
)

SOURCE = "jsonl"
LICENCE = "the user's own data; terms not stated"
FIELDS = ("instruction", "media", "modality", "tools", "ambiguity", "candidates", "turns", "split")
EXTENSIONS = {
    Modality.IMAGE: (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    Modality.AUDIO: (".wav", ".mp3", ".flac", ".ogg", ".opus", ".m4a", ".aac"),
    Modality.VIDEO: (".mp4", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".m4v"),
}


def read_jsonl(path: Path, media_root: Location | None, catalog: Path | None = None) -> SourceReading:
    """Open a JSON Lines file.

    Args:
        path: the file.
        media_root: folder that `media` is relative to; default: the file's folder.
        catalog: `catalog.jsonl` (`Tool` entries) or a text file with one tool id a line; default: `catalog.jsonl`, then
            `catalog.txt` beside the records.

    Raises:
        InputError: a file is missing, or (while iterating) a line is malformed or names a tool not in the catalogue.
    """
    if not path.is_file():
        raise InputError(f"jsonl: no file {path}; give the path of the JSON Lines file with the records.")
    root = media_root if media_root is not None else path.parent
    tools = load_catalog(catalog if catalog is not None else _find_catalog(path))
    return SourceReading(name=SOURCE, licence=LICENCE, catalog=tools, media_root=root, items=_parse_lines(path, tools))


def _find_catalog(path: Path) -> Path:
    for name in (CATALOG_FILE, "catalog.txt"):
        if (path.parent / name).is_file():
            return path.parent / name
    raise InputError(
        f"jsonl: no catalog.jsonl or catalog.txt beside {path}; write the tool ids there, one a line in catalog.txt, "
        "or name the catalogue with `catalog`."
    )


def load_catalog(path: Path) -> ToolCatalog:
    """Read a catalogue from `.jsonl` (tool entries) or from a text file (one tool id a line); adds "unknown"."""
    if path.suffix == ".jsonl":
        return catalog_with_unknown(ToolCatalog.load_jsonl(path))
    if not path.is_file():
        raise InputError(f"no tool catalogue at {path}; write one tool id a line there, or correct the path.")
    tools = []
    for number, line in enumerate(_read_lines(path), start=1):
        if not line.strip():
            continue
        try:
            tools.append(Tool(line.strip()))
        except InputError as error:
            raise InputError(f"{path}, line {number}: {error}") from error
    return catalog_with_unknown(tools)


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 at byte {error.start}; save it as UTF-8.") from error


def _parse_lines(path: Path, catalog: ToolCatalog) -> Iterator[ToolRecord | Rejected]:
    for number, line in enumerate(_read_lines(path), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise InputError(f"{where}: not valid JSON ({error}); write one JSON object a line.") from error
        try:
            record = _parse_row(row, f"{SOURCE}/{number}")
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        for tool_id in record.valid_tool_ids + record.candidate_tool_ids:
            if tool_id not in catalog:
                raise InputError(
                    f"{where}: tool {tool_id!r} is not in the catalogue; add it there or correct the name."
                )
        yield record


def _parse_row(row: Any, record_id: str) -> ToolRecord:
    if not isinstance(row, dict):
        raise InputError(f"a {type(row).__name__} instead of an object; write one JSON object a line.")
    unknown = sorted(set(row) - set(FIELDS))
    if unknown:
        raise InputError(f"unknown key {unknown[0]!r}; the keys are {', '.join(FIELDS)}.")
    instruction = _text(row, "instruction")
    check_encodable(instruction)
    media = _text(row, "media")
    check_encodable(media)
    turns = _turns(row.get("turns", []))
    if turns and media:
        raise InputError("a dialogue has a medium of its own; name its files in the prompt and leave media out.")
    return ToolRecord(
        record_id=record_id,
        source=SOURCE,
        modality=_choice(row, "modality", [m.value for m in Modality], _sniff_modality, Modality),
        instruction=instruction,
        valid_tool_ids=_names(row, "tools"),
        media_uri=relative_media_uri(media) if media else "",
        ambiguity_type=_choice(row, "ambiguity", [a.value for a in AmbiguityType], _no_ambiguity, AmbiguityType),
        candidate_tool_ids=_names(row, "candidates"),
        turns=turns,
        split=_choice(row, "split", list(SPLITS), lambda _: "", str),
    )


def _text(row: dict[str, Any], key: str) -> str:
    value = row.get(key, "")
    if not isinstance(value, str):
        raise InputError(f"{key} is {value!r}; give a string.")
    return value


def _names(row: dict[str, Any], key: str) -> tuple[str, ...]:
    value = row.get(key, [])
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise InputError(f"{key} is {value!r}; give a list of tool ids.")
    return tuple(dict.fromkeys(name.strip() for name in value))


def _choice(row: dict[str, Any], key: str, allowed: list[str], default: Any, kind: Any) -> Any:
    """The value of an optional key as `kind`, or `default(row)` where it is absent."""
    value = row.get(key, "")
    if value == "":
        return default(row)
    if value not in allowed:
        raise InputError(f"{key} is {value!r}; it must be one of {', '.join(allowed)}.")
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
    turns = tuple(Turn(role, text) for role, text in value)
    if turns:
        read_turns(turns)
    return turns
