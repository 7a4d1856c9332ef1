"""ToolMMBench as released (github.com/MLLM-Tool/MLLM-Tool, `data/IT_data_ins/T+X-T_data`): its defects end here.

Train files hold one row per (question, right name); the rows of one question become one record. The test file lists all
right names. Known defects: names with surrounding white space (" t5-base"), ambiguity as "-1", -1 or "", ids that
restart per modality, repeated rows, names listed twice. Instructions are not stripped.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipeline.errors import InputError
from data_pipeline.locations import Location
from data_pipeline.records.catalog import UNKNOWN_TOOL_ID, Tool
from data_pipeline.records.schema import AmbiguityType, Modality, ToolRecord
from data_pipeline.sources.reading import (
    Rejected,
    SourceReading,
    catalog_with_unknown,
    check_encodable,
    merge_records,
    relative_media_uri,
    require_folder,
)

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

_QuestionKey = tuple[str, Modality, str, str]  # split, modality, media_uri, instruction


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
    rows = [(file, split, position, row) for file, split in files for position, row in enumerate(_load_rows(file))]
    reading = SourceReading(
        name=SOURCE,
        licence=LICENCE,
        catalog=catalog_with_unknown(Tool(name) for name in _all_names(path, rows)),
        media_root=media_root,
        items=(),
    )
    reading.items = _merge_rows(rows, reading)
    return reading


def _load_rows(file: Path) -> list[Any]:
    try:
        rows = json.loads(file.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is not valid JSON ({error}); fetch the released file again.") from error
    if not isinstance(rows, list):
        raise InputError(f"{file} holds a {type(rows).__name__}; the released files are JSON lists of records.")
    return rows


def _all_names(path: Path, rows: list[tuple[Path, str, int, Any]]) -> list[str]:
    """Every stripped name in the files, sorted by code point; malformed rows are left to `_parse_row`."""
    names = {UNKNOWN_TOOL_ID}
    if (path / NAMES_FILE).is_file():
        names.update(line.strip() for line in (path / NAMES_FILE).read_text(encoding="utf-8-sig").splitlines())
    for file, split, position, row in rows:
        parsed = _parse_row(row, file, split, position, Counter())
        if isinstance(parsed, ToolRecord):
            names.update(parsed.valid_tool_ids)
    return sorted(names - {""})


def _merge_rows(rows: list[tuple[Path, str, int, Any]], reading: SourceReading) -> Iterator[ToolRecord | Rejected]:
    """One record per (split, medium, query), in the order of its first row."""
    records: dict[_QuestionKey, ToolRecord] = {}
    rejected: list[Rejected] = []
    for file, split, position, row in rows:
        parsed = _parse_row(row, file, split, position, reading.repairs)
        if isinstance(parsed, Rejected):
            rejected.append(parsed)
            continue
        key = (split, parsed.modality, parsed.media_uri, parsed.instruction)
        first = records.get(key)
        if first is None:
            records[key] = parsed
            continue
        _count_merge(first, parsed, reading)
        records[key] = merge_records(first, parsed)
    yield from records.values()
    yield from rejected


def _count_merge(first: ToolRecord, other: ToolRecord, reading: SourceReading) -> None:
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


def _parse_row(row: Any, file: Path, split: str, position: int, repairs: Counter[str]) -> ToolRecord | Rejected:
    """Read one released row; whatever does not fit is rejected with a reason."""
    where = f"{file.name}, record {position}"
    try:
        modality = Modality(row["input_modality"])
        human, gpt = row["conversations"]
        instruction, value = human["value"], gpt["value"]
        media_path = "" if modality is Modality.TEXT else row[f"{modality.value}_path"]
        code = row.get("ambiguity", gpt.get("ambiguity", ""))
        source_index = int(row.get("source_index", position)) if file.name in TEST_FILES else None
    except (KeyError, TypeError, ValueError, AttributeError):
        return Rejected("not in the released form: a field is missing or of another type", where)
    listed = value if isinstance(value, list) else [value]
    if not isinstance(instruction, str) or not all(isinstance(name, str) for name in listed):
        return Rejected("not in the released form: a field is missing or of another type", where)
    names = [name.strip() for name in listed]
    repairs["tool name with surrounding white space"] += sum(a != b for a, b in zip(names, listed, strict=True))
    distinct = tuple(dict.fromkeys(names))
    repairs["tool listed twice in one answer"] += len(names) - len(distinct)
    ambiguity = AmbiguityType.NONE if str(code).strip() in _NO_AMBIGUITY else _AMBIGUITY.get(str(code).strip())
    if ambiguity is None:
        return Rejected("ambiguity code is none of 1 to 5, -1 and empty", where)
    stem = file.name.removesuffix(".json")
    try:
        check_encodable(instruction)
        for name in distinct:
            Tool(name)
        return ToolRecord(
            record_id=f"{SOURCE}/{stem}/{position}",
            source=SOURCE,
            modality=modality,
            instruction=instruction,
            valid_tool_ids=distinct,
            media_uri="" if not media_path else relative_media_uri(media_path, _MEDIA_FOLDER.get(modality, "")),
            ambiguity_type=ambiguity,
            source_index=source_index,
            split=split,
        )
    except InputError as error:
        return Rejected(str(error), where)
