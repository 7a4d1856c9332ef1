"""MetaTool's ToolE as released (github.com/HowieHwong/MetaTool, `dataset/`; Huang et al. 2024, arXiv 2310.03128).

Two sources in one folder: "metatool", queries that one of 199 described tools solves, and "metatool-multi", those that
need two tools together. The second kind is a source of its own because its right answer is the pair: its records name
both tools, and their measure is whether both are ranked first ("two_tools" of `evaluate`).

Known defects: queries with white space around them; UTF-8 that was read as GBK ("caf茅"); one cell that swallowed the
next row; the same query under several tools, which become the right answers of one record. The files have no split.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from data_pipeline.errors import InputError
from data_pipeline.records.catalog import Tool, ToolCatalog
from data_pipeline.records.schema import Modality, ToolRecord
from data_pipeline.records.text import parse_json, read_text
from data_pipeline.sources.reading import (
    Rejected,
    SourceReading,
    catalog_with_unknown,
    check_row_texts,
    merge_records,
    merge_same_questions,
    require_folder,
)
from data_pipeline.sources.rows import read_rows

SINGLE = "metatool"
MULTI = "metatool-multi"
LICENCE = "MIT (Copyright (c) 2023 Yue Huang)"
DESCRIPTIONS_FILE = "plugin_des.json"
QUERY_FILES = ("all_clean_data.csv", "queries_shared.csv")  # the released name; a part of it with `source_index`
MULTI_FILE = "multi_tool_query_golden.json"


def read_metatool(path: Path, name: str = SINGLE) -> SourceReading:
    """Open the folder with the released files.

    Args:
        path: folder with `DESCRIPTIONS_FILE` and, for the queries, one of `QUERY_FILES` (the complete one wins) or
            `MULTI_FILE`: upstream keeps them in `dataset/` and `dataset/data/`; copy them into one folder.
        name: SINGLE or MULTI.

    Raises:
        InputError: not a folder, a file is missing or not in the released form.
    """
    require_folder(path, f"{name}: path")
    tools = _read_tools(path / DESCRIPTIONS_FILE)
    known = frozenset(tool.tool_id for tool in tools)
    repairs: Counter[str] = Counter()
    wanted = QUERY_FILES if name == SINGLE else (MULTI_FILE,)
    file = next((path / candidate for candidate in wanted if (path / candidate).is_file()), None)
    if file is None:
        raise InputError(f"{name}: {path} has no {' or '.join(wanted)}; give the folder with the released files.")
    rows = _read_queries(file) if name == SINGLE else _read_pairs(file)
    return SourceReading(
        name=name,
        licence=LICENCE,
        catalog=catalog_with_unknown(tools),
        media_root=None,
        items=merge_same_questions(_read_records(rows, name, file, known, repairs), partial(_join, repairs)),
        repairs=repairs,
    )


def _read_tools(file: Path) -> ToolCatalog:
    described = parse_json(read_text(file)) if file.is_file() else None
    if not isinstance(described, dict) or not all(isinstance(text, str) for text in described.values()):
        raise InputError(f"{file} is missing or no JSON object of tool names and descriptions; fetch it again.")
    try:
        return ToolCatalog(Tool(tool_id, description=" ".join(text.split())) for tool_id, text in described.items())
    except InputError as error:
        raise InputError(f"{file}: {error}") from error


def _read_queries(file: Path) -> Iterator[tuple[str, Any, list[Any]]]:
    """(position in the complete file, query, tools) of each row."""
    reader = csv.DictReader(io.StringIO(read_text(file), newline=""))
    if not {"Query", "Tool"} <= set(reader.fieldnames or ()):
        raise InputError(f"{file} has no columns Query and Tool; fetch the released file again.")
    for position, row in enumerate(reader):
        yield row.get("source_index") or str(position), row["Query"], [row["Tool"]]


def _read_pairs(file: Path) -> Iterator[tuple[str, Any, list[Any]]]:
    for row in read_rows(file):
        content = row.content if isinstance(row.content, dict) else {}
        tools = content.get("tool")
        yield row.number, content.get("query"), tools if isinstance(tools, list) else []


def _read_records(
    rows: Iterable[tuple[str, Any, list[Any]]], name: str, file: Path, known: frozenset[str], repairs: Counter[str]
) -> Iterator[ToolRecord | Rejected]:
    for number, query, tools in rows:
        try:
            yield _read_record(f"{name}/{file.stem}/{number}", name, query, tools, known, repairs)
        except InputError as error:
            yield Rejected(str(error), f"{file.name}, record {number}")


def _join(repairs: Counter[str], first: ToolRecord, other: ToolRecord) -> ToolRecord:
    """Two rows of one query, counted. Of two pairs the first stands: four tools together would answer neither."""
    same = set(other.valid_tool_ids) == set(first.valid_tool_ids)
    repairs["query repeated" if same else "query repeated under another tool"] += 1
    return first if first.source == MULTI else merge_records(first, other)


def _read_record(
    record_id: str, source: str, query: Any, tools: list[Any], known: frozenset[str], repairs: Counter[str]
) -> ToolRecord:
    """Read one row.

    Raises:
        InputError: it cannot be a record; equal faults have equal words.
    """
    if not isinstance(query, str) or not query.strip():
        raise InputError("the query is empty or no text")
    if len(query.strip().splitlines()) > 1:
        raise InputError("the query holds several lines: its cell has swallowed the next row")
    if not all(isinstance(tool, str) and tool in known for tool in tools):
        raise InputError(f"a tool is not in {DESCRIPTIONS_FILE}")
    if len(set(tools)) != (1 if source == SINGLE else 2):
        raise InputError("the row does not name as many tools as its file's rows do")
    mended = _undo_gbk(query)
    repairs["UTF-8 that was read as GBK"] += mended != query
    repairs["white space around a query"] += mended != mended.strip()
    check_row_texts((mended,))
    return ToolRecord(
        record_id=record_id,
        source=source,
        modality=Modality.TEXT,
        instruction=mended.strip(),
        valid_tool_ids=tuple(tools),
    )


def _undo_gbk(text: str) -> str:
    """The text as it was before its UTF-8 was read as GBK, once or twice; Chinese that is meant is no UTF-8 in GBK."""
    while not text.isascii():
        try:
            earlier = text.encode("gbk").decode("utf-8")
        except UnicodeError:
            break
        if earlier == text:
            break
        text = earlier
    return text
