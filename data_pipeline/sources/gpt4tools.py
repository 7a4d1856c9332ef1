"""GPT4Tools as released (github.com/AILab-CVC/GPT4Tools, `asserts/docs/data.md` at commit 643faa8), as dialogues.

A row is ``{"instruction": the whole prompt, "input": "", "output": "Thought: ..."}``, with or without `id`; a file is a
JSON list or JSON Lines. The reference strips the output, and so does this reader. What the released rows leave out
stays out: their prompts often hold the earlier calls of a chain, and the output is the next turn alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipeline.errors import InputError
from data_pipeline.records.catalog import UNKNOWN_TOOL_ID, Tool
from data_pipeline.records.dialogue import OBSERVATION, Answer, parse_offered_tools, parse_turns, read_turns
from data_pipeline.records.schema import Modality, ToolRecord
from data_pipeline.sources.gpt4tools_catalog import GPT4TOOLS_TOOLS, find_tool_id
from data_pipeline.sources.reading import Rejected, SourceReading, catalog_with_unknown, check_encodable

SOURCE = "gpt4tools"
LICENCE = "the terms of the released GPT4Tools data (github.com/AILab-CVC/GPT4Tools); not stated beside the files"
SPLIT_FILES = {
    "train": ("train.json", "train.jsonl", "gpt4tools_71k.json"),
    "val": ("val.json", "val.jsonl", "gpt4tools_val_seen.json"),
    "test": ("test.json", "test.jsonl", "gpt4tools_test_unseen.json"),
}

_NOT_RELEASED_FORM = "not in the released form: instruction or output is missing or no text, or input is not empty"


def read_gpt4tools(path: Path) -> SourceReading:
    """Open a released file, or a folder with one file for each split.

    Args:
        path: a file, whose rows are split by us; or a folder with any of `SPLIT_FILES`, whose splits stand. Training
            rows alone are split by us.

    Raises:
        InputError: no such file, none of the names in the folder, two files of one split, or a file that is not JSON.
    """
    files = _find_files(path)
    if set(files) == {"train"}:
        files = {"": files["train"]}
    rows = [
        (file, split, position, row) for split, file in files.items() for position, row in enumerate(_load_rows(file))
    ]
    tools = {tool.tool_id: tool for tool in GPT4TOOLS_TOOLS}
    for _, _, _, row in rows:
        _add_tools(row, tools)
    reading = SourceReading(
        name=SOURCE, licence=LICENCE, catalog=catalog_with_unknown(tools.values()), media_root=None, items=()
    )
    reading.items = _parse_rows(rows, reading)
    return reading


def _find_files(path: Path) -> dict[str, Path]:
    """Split -> file; "" for a file without a split."""
    if path.is_file():
        return {"": path}
    if not path.is_dir():
        raise InputError(f"gpt4tools: no file or folder {path}; give the released JSON file or the folder with it.")
    files: dict[str, Path] = {}
    for split, names in SPLIT_FILES.items():
        found = [path / name for name in names if (path / name).is_file()]
        if len(found) > 1:
            raise InputError(f"gpt4tools: {path} holds {found[0].name} and {found[1].name}; keep one file of a split.")
        if found:
            files[split] = found[0]
    if not files:
        names = ", ".join(name for names in SPLIT_FILES.values() for name in names)
        raise InputError(f"gpt4tools: {path} holds none of {names}; name the released file or rename it so.")
    return files


def _load_rows(file: Path) -> list[Any]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 at byte {error.start}; save it as UTF-8.") from error
    if text.lstrip()[:1] == "[":
        try:
            return json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise InputError(f"{file} is not valid JSON ({error}); fetch the released file again.") from error
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except (json.JSONDecodeError, RecursionError) as error:
            raise InputError(
                f"{file}, line {number}: not valid JSON ({error}); the file must be a JSON list or JSON Lines."
            ) from error
    if len(rows) == 1 and not (isinstance(rows[0], dict) and "instruction" in rows[0]):
        raise InputError(f"{file} holds a {type(rows[0]).__name__}; it must be a JSON list or JSON Lines of records.")
    return rows


def _add_tools(row: Any, tools: dict[str, Tool]) -> None:
    """Add the tools that a prompt offers and the catalogue lacks, with the usage that the first prompt gives."""
    prompt = row.get("instruction") if isinstance(row, dict) else None
    for name, usage in (parse_offered_tools(prompt) if isinstance(prompt, str) else {}).items():
        tool_id = find_tool_id(name)
        if tool_id not in tools:
            tools[tool_id] = Tool(tool_id, name=name, usage=usage)


def _parse_rows(rows: list[tuple[Path, str, int, Any]], reading: SourceReading) -> Iterator[ToolRecord | Rejected]:
    ids: set[str] = set()
    for file, split, position, row in rows:
        where = f"{file.name}, record {position}"
        try:
            record = _parse_row(row, split, position, reading)
        except InputError as error:
            yield Rejected(str(error), where)
            continue
        if record.record_id in ids:
            yield Rejected("an id that an earlier record of the split has", where)
            continue
        ids.add(record.record_id)
        yield record


def _parse_row(row: Any, split: str, position: int, reading: SourceReading) -> ToolRecord:
    """Read one row.

    Raises:
        InputError: it does not follow the form; equal faults have equal words.
    """
    if not isinstance(row, dict):
        raise InputError(_NOT_RELEASED_FORM)
    prompt, output, row_id = row.get("instruction"), row.get("output"), row.get("id", position)
    if not isinstance(prompt, str) or not isinstance(output, str) or row.get("input", "") not in ("", None):
        raise InputError(_NOT_RELEASED_FORM)
    if isinstance(row_id, bool) or not isinstance(row_id, int | str):
        raise InputError("the id is neither a number nor a text")
    if not prompt.strip() or not output.strip():
        raise InputError("the instruction or the output is empty")
    for text in (prompt, output, str(row_id)):
        try:
            check_encodable(text)
        except InputError as error:
            raise InputError("the text holds a lone surrogate") from error
    turns = parse_turns(output.strip())
    if turns[-1].role == OBSERVATION and len(turns) > 1:  # the model is not to write it, and nothing follows it
        reading.repairs["observation after the last call left out"] += 1
        turns = turns[:-1]
    offered = [find_tool_id(name) for name in parse_offered_tools(prompt)]
    called = [find_tool_id(step.name) for step in read_turns(turns) if not isinstance(step, Answer)]
    if not set(called) <= set(offered):
        raise InputError("a tool is called that the prompt does not offer")
    return ToolRecord(
        record_id="/".join(part for part in (SOURCE, split, str(row_id)) if part),
        source=SOURCE,
        modality=Modality.TEXT,
        instruction=prompt,
        valid_tool_ids=tuple(dict.fromkeys(called)) or (UNKNOWN_TOOL_ID,),
        candidate_tool_ids=tuple(dict.fromkeys(offered)),
        turns=turns,
        split=split,
    )
