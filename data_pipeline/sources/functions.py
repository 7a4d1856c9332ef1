"""Tools, calls and media as the chats of other trainers write them: JSON schemas, JSON in strings, lists of paths."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from data_pipeline.errors import InputError
from data_pipeline.records.catalog import Tool
from data_pipeline.records.parameters import check_parameters
from data_pipeline.records.schema import Modality
from data_pipeline.records.text import parse_json
from data_pipeline.sources.chat import ChatCall, build_tool

MEDIA_KEYS = {
    "images": Modality.IMAGE,
    "image": Modality.IMAGE,
    "videos": Modality.VIDEO,
    "video": Modality.VIDEO,
    "audios": Modality.AUDIO,
    "audio": Modality.AUDIO,
}

_TOOL_CALL = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)  # Hermes' form
_TOOL_RESPONSE = re.compile(r"\s*<tool_response>\s*(.*?)\s*</tool_response>\s*", re.DOTALL)


def parse_list(value: Any, what: str) -> list[Any]:
    """A list, or one written as JSON in a string, as CSV and LLaMA-Factory have it; [] for null and "".

    Raises:
        InputError: it is something else.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return []
    try:
        value = parse_json(value) if isinstance(value, str) else value
    except InputError as error:
        raise InputError(f"{what} is a text that is not JSON") from error
    if isinstance(value, Mapping):
        return [value]
    if not isinstance(value, list):
        raise InputError(f"{what} is no list")
    return value


def parse_functions(value: Any) -> tuple[Tool, ...]:
    """Offered tools: `{"type": "function", "function": {"name", "description", "parameters"}}`, or the inner object."""
    tools = []
    for entry in parse_list(value, "tools"):
        function = entry.get("function") or entry if isinstance(entry, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise InputError("an offered tool has no name")
        description = function.get("description") or ""
        if not isinstance(description, str):
            raise InputError("the description of an offered tool is no text")
        schema = _read_schema(function.get("parameters"))
        arguments = tuple(schema.get("properties", {}))
        tools.append(build_tool(function["name"], description, arguments, schema if _is_valid(schema) else {}))
    if len({tool.call_name for tool in tools}) != len(tools):
        raise InputError("two offered tools have one name")
    return tuple(tools)


def _read_schema(parameters: Any) -> dict[str, Any]:
    """A JSON schema, also where its properties alone are given; {} for none."""
    if isinstance(parameters, str) and parameters.strip():
        try:
            parameters = parse_json(parameters)
        except InputError as error:
            raise InputError("the parameters of an offered tool are not JSON") from error
    if not isinstance(parameters, Mapping):
        return {}
    schema = _drop_nulls(parameters)
    if "properties" not in schema and schema.get("type") != "object":
        schema = {"type": "object", "properties": schema}
    return schema if isinstance(schema.get("properties", {}), dict) else {}


def _drop_nulls(value: Any) -> Any:
    """Parquet has null for each key of other rows' tools."""
    if isinstance(value, Mapping):
        return {key: _drop_nulls(each) for key, each in value.items() if each is not None}
    return [_drop_nulls(each) for each in value] if isinstance(value, list) else value


def _is_valid(schema: Mapping[str, Any]) -> bool:
    """Others train on chats whose functions are described otherwise, as in Python's types: these keep their names."""
    try:
        check_parameters(schema)
    except InputError:
        return False
    return True


def parse_call(value: Any, call_id: Any = None) -> ChatCall:
    """`{"name", "arguments"}`, the arguments an object or one written as JSON in a string."""
    name = value.get("name") if isinstance(value, Mapping) else None
    if not isinstance(name, str) or not name.strip():
        raise InputError("a call has no name")
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str) and arguments.strip():
        try:
            arguments = parse_json(arguments)
        except InputError as error:
            raise InputError("the arguments of a call are not JSON") from error
    arguments = arguments or {}
    if not isinstance(arguments, Mapping):
        raise InputError("the arguments of a call are no object")
    given = {str(key): argument for key, argument in arguments.items() if argument is not None}
    return ChatCall(name, given, call_id if isinstance(call_id, str) else "")


def parse_tagged_calls(text: str) -> tuple[str, tuple[ChatCall, ...]]:
    """An assistant's words without the calls that stand in them between `<tool_call>` tags, and those calls."""
    calls = []
    for found in _TOOL_CALL.findall(text):
        try:
            calls.append(parse_call(parse_json(found)))
        except InputError as error:
            raise InputError("what stands between <tool_call> tags is no call") from error
    return _TOOL_CALL.sub("", text), tuple(calls)


def parse_tagged_results(text: str) -> list[str]:
    """The results in a tool's message: those between `<tool_response>` tags, or all of it."""
    return _TOOL_RESPONSE.findall(text) or [text]


def parse_media(row: Mapping[str, Any]) -> tuple[tuple[Modality, str], ...]:
    """The media that a row lists under `MEDIA_KEYS`: paths, one or a list of them."""
    media = []
    for key, modality in MEDIA_KEYS.items():
        value = row.get(key)
        is_path = isinstance(value, str) and value.strip()[:1] != "["
        for path in [value] if is_path and value else parse_list(value, key):
            if not isinstance(path, str):
                raise InputError("a medium is not given by its path; write it to a file and give that")
            media.append((modality, path))
    return tuple(media)
