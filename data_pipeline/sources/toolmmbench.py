"""ToolMMBench as released (github.com/MLLM-Tool/MLLM-Tool, `data/IT_data_ins/T+X-T_data`): its defects end here.

Train files hold one row per (question, right name); the rows of one question become one record. The test file lists all
right names. Known defects: names with surrounding white space (" t5-base"), ambiguity as "-1", -1 or "", ids that
restart per modality, repeated rows, names listed twice. Codes are read as pandas rewrites them too (2.0, null).
Instructions are not stripped.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from data_pipeline.errors import InputError
from data_pipeline.locations import Location
from data_pipeline.records.catalog import UNKNOWN_TOOL_ID, Tool, ToolCatalog
from data_pipeline.records.schema import AmbiguityType, Modality, ToolRecord
from data_pipeline.records.text import read_text
from data_pipeline.sources.reading import (
    Rejected,
    SourceReading,
    catalog_with_unknown,
    check_row_texts,
    merge_records,
    merge_same_questions,
    relative_media_uri,
    require_folder,
)
from data_pipeline.sources.rows import SourceRow, read_json_list

SOURCE = "toolmmbench"
LICENCE = (
    "MIT (Copyright (c) 2024 Tool-LMM); upstream's README adds: intended for non-commercial research use only, "
    "commercial use should be approved by the authors"
)
TRAIN_FILES = ("text_t2t.json", "image_tx2t.json", "audio_tx2t.json", "video_tx2t.json")
TEST_FILES = ("combined_data.json", "test_shared.json")  # the released name; a part of it with `source_index`
NAMES_FILE = "api_names.txt"

_MEDIA_FOLDER = {Modality.IMAGE: "image", Modality.AUDIO: "audio", Modality.VIDEO: ""}  # video paths bear theirs
_AMBIGUITY = {str(code): kind for code, kind in enumerate(AmbiguityType, start=1) if kind is not AmbiguityType.NONE}
_NO_AMBIGUITY = {"", "-1", "None"}
_NOT_RELEASED_FORM = "not in the released form: a field is missing or of another type"
_MAX_SOURCE_INDEX = 2**31


def read_toolmmbench(path: Path, media_root: Location | None) -> SourceReading:
    """Open the folder with the released JSON files.

    Args:
        path: folder with any of `TRAIN_FILES` and at most one of `TEST_FILES` in use (the complete one wins).
        media_root: folder with upstream's `image/`, `audio/` and `video/`, or None.

    Raises:
        InputError: not a folder, no known file in it, or a file that is not a JSON list of objects.
    """
    require_folder(path, "toolmmbench: path")
    train_files = [path / name for name in TRAIN_FILES if (path / name).is_file()]
    test_file = next((path / name for name in TEST_FILES if (path / name).is_file()), None)
    if not train_files and test_file is None:
        raise InputError(
            f"toolmmbench: {path} holds none of {', '.join(TRAIN_FILES + TEST_FILES)}; give the folder with the "
            "released JSON files."
        )
    train_split = "train" if test_file is not None else ""  # without a test file the split is ours
    files = [(file, train_split) for file in train_files] + ([(test_file, "test")] if test_file else [])
    rows = [(file, split, row) for file, split in files for row in _load_rows(file)]
    repairs: Counter[str] = Counter()
    parsed = [_parse_row(row, file, split, repairs) for file, split, row in rows]
    reading = SourceReading(
        name=SOURCE,
        licence=LICENCE,
        catalog=catalog_with_unknown(Tool(name) for name in _all_names(path, parsed)),
        media_root=media_root,
        items=(),
        repairs=repairs,
    )
    reading.items = merge_same_questions(parsed, partial(_join, reading))
    return reading


def _load_rows(file: Path) -> list[SourceRow]:
    text = read_text(file)
    if text.lstrip()[:1] != "[":
        raise InputError(
            f"{file} is no JSON list of records, as the released files are; fetch the released file again."
        )
    return list(read_json_list(file, text))


def _all_names(path: Path, parsed: list[ToolRecord | Rejected]) -> list[str]:
    """Every stripped name in the files, sorted by code point."""
    names = {UNKNOWN_TOOL_ID}
    if (path / NAMES_FILE).is_file():
        for number, line in enumerate(read_text(path / NAMES_FILE).split("\n"), start=1):
            if line.strip():
                names.add(_check_name(line.strip(), f"{path / NAMES_FILE}, line {number}"))
    for item in parsed:
        if isinstance(item, ToolRecord):
            names.update(item.valid_tool_ids)
    return sorted(names)


def _check_name(name: str, where: str) -> str:
    try:
        return Tool(name).tool_id
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _join(reading: SourceReading, first: ToolRecord, other: ToolRecord) -> ToolRecord:
    """Two rows of one question, counted."""
    if first.source_index is not None and other.source_index is not None:
        reading.repairs["test question repeated"] += 1
        reading.merged_source_indexes.setdefault(first.source_index, []).append(other.source_index)
        unknown = (UNKNOWN_TOOL_ID,)
        if (first.valid_tool_ids == unknown) != (other.valid_tool_ids == unknown):
            reading.repairs["question answered by tools in one row and by 'unknown' in another"] += 1
    elif set(other.valid_tool_ids) <= set(first.valid_tool_ids):
        reading.repairs["training row repeated"] += 1
    if first.ambiguity_type is not other.ambiguity_type:
        reading.repairs["ambiguity types differ between rows of one question"] += 1
    return merge_records(first, other)


def _parse_row(row: SourceRow, file: Path, split: str, repairs: Counter[str]) -> ToolRecord | Rejected:
    """Read one released row; whatever does not fit is rejected with a reason."""
    where = f"{file.name}, {row.place}"
    try:
        return _read_row(row, file, split, repairs)
    except InputError as error:
        return Rejected(str(error), where)


def _read_row(row: SourceRow, file: Path, split: str, repairs: Counter[str]) -> ToolRecord:
    """Read one row.

    Raises:
        InputError: it does not follow the form; equal faults have equal words.
    """
    if row.fault:
        raise InputError(row.fault)
    try:
        content = row.content
        modality = Modality(content["input_modality"])
        human, gpt = content["conversations"]
        instruction, value = human["value"], gpt["value"]
        media_path = "" if modality is Modality.TEXT else content[f"{modality.value}_path"]
        code = _spell_code(content.get("ambiguity", gpt.get("ambiguity", "")))
        index = content.get("source_index")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(_NOT_RELEASED_FORM) from error
    listed = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in (instruction, media_path, *listed)):
        raise InputError(_NOT_RELEASED_FORM)
    source_index = None
    if file.name in TEST_FILES:
        source_index = row.position if index is None else _whole_number(index)
    if code not in _AMBIGUITY and code not in _NO_AMBIGUITY:
        raise InputError("ambiguity code is none of 1 to 5, -1 and empty")
    names = [name.strip() for name in listed]
    distinct = tuple(dict.fromkeys(names))
    _check_words(instruction, distinct)
    repairs["tool name with surrounding white space"] += sum(a != b for a, b in zip(names, listed, strict=True))
    repairs["tool listed twice in one answer"] += len(names) - len(distinct)
    return ToolRecord(
        record_id=f"{SOURCE}/{file.name.removesuffix('.json')}/{row.position}",
        source=SOURCE,
        modality=modality,
        instruction=instruction,
        valid_tool_ids=distinct,
        media_uri="" if modality is Modality.TEXT else _media_uri(media_path, modality),
        ambiguity_type=_AMBIGUITY.get(code, AmbiguityType.NONE),
        source_index=source_index,
        split=split,
    )


def _spell_code(code: Any) -> str:
    """A code as the released files write it: pandas turns 2 into 2.0 where other rows have none."""
    return re.sub(r"\.0$", "", str(code).strip())


def _whole_number(value: Any) -> int:
    is_whole = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < _MAX_SOURCE_INDEX
    if not is_whole or value != int(value):
        raise InputError("source_index is no whole number from 0")
    return int(value)


def _check_words(instruction: str, names: tuple[str, ...]) -> None:
    if not instruction.strip():
        raise InputError("the instruction is empty")
    if not names:
        raise InputError("no tool is named")
    check_row_texts((instruction,))
    try:
        ToolCatalog(Tool(name) for name in names)
    except InputError as error:
        raise InputError("a tool's name is empty, or holds white space or one of { } [ ] , ' \"") from error


def _media_uri(path: str, modality: Modality) -> str:
    try:
        return relative_media_uri(path, _MEDIA_FOLDER[modality])
    except InputError as error:
        raise InputError("the media path is empty, or does not lie below the media root") from error
