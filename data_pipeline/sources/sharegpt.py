"""ShareGPT's form, as LLaMA-Factory and axolotl read it: `conversations` of `from` and `value` (or `role`, `content`).

    {"conversations": [{"from": "human", "value": "Crop the dog in a.png"},
                       {"from": "function_call", "value": "{\\"name\\": \\"crop\\", \\"arguments\\": {...}}"},
                       {"from": "observation", "value": "b.png"},
                       {"from": "gpt", "value": "It is in b.png."}],
     "system": "", "tools": "[{\\"name\\": \\"crop\\", \\"description\\": ..., \\"parameters\\": {...}}]", "images": []}

Calls between `<tool_call>` tags, as Hermes' data have them, are calls too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data_pipeline.errors import InputError
from data_pipeline.records.text import parse_json
from data_pipeline.sources.chat import Chat, ChatMessage, read_split
from data_pipeline.sources.functions import (
    parse_call,
    parse_functions,
    parse_list,
    parse_media,
    parse_tagged_calls,
    parse_tagged_results,
)

_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "function_call": "call",
    "observation": "tool",
    "tool": "tool",
    "function_response": "tool",
}


def parse_sharegpt(row: Mapping[str, Any]) -> Chat:
    """Read one row.

    Raises:
        InputError: it does not follow the form; equal faults have equal words.
    """
    messages: list[ChatMessage] = []
    system = row.get("system")
    if isinstance(system, str) and system.strip():
        messages.append(ChatMessage("system", system))
    for entry in parse_list(row.get("conversations"), "conversations"):
        messages += _parse_message(entry)
    return Chat(tuple(messages), parse_functions(row.get("tools")), parse_media(row), read_split(row))


def _parse_message(entry: Any) -> list[ChatMessage]:
    role = entry.get("from", entry.get("role")) if isinstance(entry, Mapping) else None
    text = entry.get("value", entry.get("content")) if isinstance(entry, Mapping) else None
    kind = _ROLES.get(role) if isinstance(role, str) else None
    if kind is None or not isinstance(text, str):
        raise InputError(f"a message has no text, or not one of the roles {', '.join(_ROLES)}")
    if kind == "call":
        try:
            content = parse_json(text)
        except InputError as error:
            raise InputError("the value of a function_call is not JSON") from error
        calls = content if isinstance(content, list) else [content]
        return [ChatMessage("assistant", "", tuple(parse_call(call) for call in calls))]
    if kind == "tool":
        return [ChatMessage(kind, result) for result in parse_tagged_results(text)]
    if kind == "assistant":
        words, calls = parse_tagged_calls(text)
        return [ChatMessage(kind, words, calls)]
    return [ChatMessage(kind, text)]
