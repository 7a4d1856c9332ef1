"""GPT4Tools as released (github.com/AILab-CVC/GPT4Tools, `asserts/docs/data.md` at commit 643faa8), as dialogues.

A row is ``{"instruction": the whole prompt, "input": "", "output": "Thought: ..."}``, with or without `id`; a file is a
JSON list or JSON Lines, packed with gzip or not. The reference strips the output, and so does this reader. What the
released rows leave out stays out: their prompts often hold the earlier calls of a chain, and the output is the next
turn alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from data_pipeline.errors import InputError
from data_pipeline.records.catalog import UNKNOWN_TOOL_ID, Tool, ToolCatalog
from data_pipeline.records.dialogue import Answer, parse_offered_tools, parse_turns, read_turns
from data_pipeline.records.schema import OBSERVATION, Modality, ToolRecord
from data_pipeline.sources.gpt4tools_catalog import GPT4TOOLS_TOOLS, find_tool_id
from data_pipeline.sources.reading import (
    Rejected,
    SourceReading,
    catalog_with_unknown,
    check_row_texts,
    find_dropped,
    join_line_breaks,
)
from data_pipeline.sources.rows import SourceRow, read_rows

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
        path: a file, whose rows are split by us; or a folder with any of `SPLIT_FILES`, packed or not, whose splits
            stand. Training rows alone are split by us.

    Raises:
        InputError: no such file, none of the names in the folder, two files of one split, or a file that is not JSON.
    """
    files = _find_files(path)
    if set(files) == {"train"}:
        files = {"": files["train"]}
    reading = SourceReading(name=SOURCE, licence=LICENCE, catalog=ToolCatalog(()), media_root=None, items=())
    tools = {tool.tool_id: tool for tool in GPT4TOOLS_TOOLS}
    items: list[ToolRecord | Rejected] = []
    ids: set[str] = set()
    for split, file in files.items():
        for row in _load_rows(file):
            where = f"{file.name}, record {row.position}"
            if (dropped := find_dropped(row.content, where)) is not None:
                items.append(dropped)
                continue
            try:
                record, offered = _parse_row(row, split, reading, tools)
            except InputError as error:
                items.append(Rejected(str(error), where))
                continue
            if record.record_id in ids:
                items.append(Rejected("an id that an earlier record of the split has", where))
                continue
            ids.add(record.record_id)
            tools |= offered
            items.append(record)
    reading.catalog = catalog_with_unknown(tools.values())
    reading.items = items
    return reading


def _find_files(path: Path) -> dict[str, Path]:
    """Split -> file; "" for a file without a split."""
    if path.is_file():
        return {"": path}
    if not path.is_dir():
        raise InputError(f"gpt4tools: no file or folder {path}; give the released JSON file or the folder with it.")
    files: dict[str, Path] = {}
    for split, names in SPLIT_FILES.items():
        either = (path / (name + packed) for name in names for packed in ("", ".gz"))
        found = [file for file in either if file.is_file()]
        if len(found) > 1:
            raise InputError(f"gpt4tools: {path} holds {found[0].name} and {found[1].name}; keep one file of a split.")
        if found:
            files[split] = found[0]
    if not files:
        names = ", ".join(name for names in SPLIT_FILES.values() for name in names)
        raise InputError(f"gpt4tools: {path} holds none of {names}; name the released file or rename it so.")
    return files


def _load_rows(file: Path) -> list[SourceRow]:
    rows = list(read_rows(file))
    if len(rows) == 1 and not rows[0].fault:
        content = rows[0].content
        if not isinstance(content, dict) or "instruction" not in content:
            raise InputError(
                f"{file} holds a {type(content).__name__}; it must be a JSON list or JSON Lines of records."
            )
    return rows


def _parse_row(
    row: SourceRow, split: str, reading: SourceReading, tools: Mapping[str, Tool]
) -> tuple[ToolRecord, dict[str, Tool]]:
    """Read one row.

    Args:
        row: as the file has it.
        split: the file's.
        reading: where repairs are counted.
        tools: the tools that are known.

    Returns:
        the record, and the tools that its prompt offers and `tools` lacks, with the usage that it gives.

    Raises:
        InputError: it does not follow the form; equal faults have equal words.
    """
    if row.fault:
        raise InputError(row.fault)
    if not isinstance(row.content, dict):
        raise InputError(_NOT_RELEASED_FORM)
    prompt, output = row.content.get("instruction"), row.content.get("output")
    if not isinstance(prompt, str) or not isinstance(output, str) or row.content.get("input") not in ("", None):
        raise InputError(_NOT_RELEASED_FORM)
    row_id = _read_id(row)
    if not prompt.strip() or not output.strip():
        raise InputError("the instruction or the output is empty")
    check_row_texts((prompt, output, row_id))
    prompt, output = join_line_breaks([prompt, output], reading.repairs)
    turns = parse_turns(output.strip())
    if turns[-1].role == OBSERVATION and len(turns) > 1:  # the model is not to write it, and nothing follows it
        reading.repairs["observation after the last call left out"] += 1
        turns = turns[:-1]
    offered = {find_tool_id(name): (name, usage) for name, usage in parse_offered_tools(prompt).items()}
    called = [find_tool_id(step.name) for step in read_turns(turns) if not isinstance(step, Answer)]
    if not set(called) <= set(offered):
        raise InputError("a tool is called that the prompt does not offer")
    record = ToolRecord(
        record_id="/".join(part for part in (SOURCE, split, row_id) if part),
        source=SOURCE,
        modality=Modality.TEXT,
        instruction=prompt,
        valid_tool_ids=tuple(dict.fromkeys(called)) or (UNKNOWN_TOOL_ID,),
        candidate_tool_ids=tuple(offered),
        turns=turns,
        split=split,
    )
    return record, {tool_id: _build_tool(tool_id, *words) for tool_id, words in offered.items() if tool_id not in tools}


def _read_id(row: SourceRow) -> str:
    """The row's id as text, its position where it has none; pandas turns 3 into 3.0 where other rows have none."""
    row_id = row.content.get("id")
    if row_id is None:
        return str(row.position)
    if isinstance(row_id, float) and row_id.is_integer():
        return str(int(row_id))
    if isinstance(row_id, bool) or not isinstance(row_id, int | str):
        raise InputError("the id is neither a number nor a text")
    return str(row_id)


def _build_tool(tool_id: str, name: str, usage: str) -> Tool:
    try:
        return Tool(tool_id, name=name, usage=usage)
    except InputError as error:
        raise InputError("the prompt offers a tool with a name or a usage that no catalogue can hold") from error
