"""Answers that a server forces into JSON (`response_format`), brought into the lines that the filters read.

What is asked and what is kept is the same as without: only the server's own promise of a form comes on top.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from data_pipeline.errors import InputError
from data_pipeline.records.text import parse_json

_TEXT = {"type": "string"}
_NUMBER = re.compile(r"^(?:Query\s*)?\d{1,2}\s*[.:)]\s*", re.IGNORECASE)  # which some write all the same


def _list_of(name: str, item: Mapping[str, Any]) -> dict[str, Any]:
    """Strict schemas name every key and allow no other."""
    properties = {name: {"type": "array", "items": item}}
    return {"type": "object", "properties": properties, "required": [name], "additionalProperties": False}


QUERIES = _list_of("queries", _TEXT)
INSTRUCTIONS = _list_of(
    "instructions",
    {
        "type": "object",
        "properties": {"instruction": _TEXT, "tool": _TEXT, "arguments": {"type": "array", "items": _TEXT}},
        "required": ["instruction", "tool", "arguments"],
        "additionalProperties": False,
    },
)


def to_query_lines(text: str) -> str:
    """`{"queries": [...]}` -> ``Query1: ...`` lines; any other text as it is."""
    queries = _read_list(text, "queries")
    if queries is None:
        return text
    words = [_NUMBER.sub("", _one_line(query)) for query in queries]
    return "\n".join(f"Query{number}: {query}" for number, query in enumerate(words, start=1))


def to_instruction_lines(text: str) -> str:
    """`{"instructions": [...]}` -> ``<instruction>, [<tool name>, "<arguments>"]`` lines; any other text as it is."""
    instructions = _read_list(text, "instructions")
    if instructions is None:
        return text
    lines = []
    for each in instructions:
        row = each if isinstance(each, Mapping) else {}
        arguments = row.get("arguments")
        values = ", ".join(map(_one_line, arguments)) if isinstance(arguments, list) else ""
        lines.append(f'{_one_line(row.get("instruction", ""))}, [{_one_line(row.get("tool", ""))}, "{values}"]')
    return "\n".join(lines)


def _read_list(text: str, key: str) -> list[Any] | None:
    if not text.lstrip().startswith("{"):
        return None
    try:
        content = parse_json(text)
    except InputError:  # cut short: what is no line will be refused as one
        return None
    found = content.get(key) if isinstance(content, dict) else None
    return found if isinstance(found, list) else None


def _one_line(value: object) -> str:
    return " ".join(str(value).split())
