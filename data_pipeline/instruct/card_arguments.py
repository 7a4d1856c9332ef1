"""What Gorilla's cards say of an API's arguments (`api_arguments`), as a JSON Schema.

Cards write them as names, as names with values or place holders, as objects of name, type and description, or as one
text of any of these. What is no argument's name is left out: sentences, and what the call itself loads.
"""

from __future__ import annotations

import ast
import keyword
import math
from collections.abc import Iterator, Mapping
from typing import Any

from data_pipeline.records.api_calls import find_calls
from data_pipeline.records.text import cut_words

MAX_ARGUMENTS = 50  # of an API; 36 are the most that released cards have
_MAX_NAME_CHARS = 64
_MAX_VALUE_CHARS = 120  # of a description, an example or a default: a schema has a largest size
_TYPES = {
    "string": ("str", "string", "text"),
    "integer": ("int", "integer"),
    "number": ("float", "number", "double"),
    "boolean": ("bool", "boolean"),
    "array": ("list", "array", "tuple"),
    "object": ("dict", "object"),
}
_TYPE_OF_WORD = {word: name for name, words in _TYPES.items() for word in words}
_WORDS = {"True": True, "False": False}  # as cards spell Python's values


def build_schema(stated: Any, call: str) -> dict[str, Any]:
    """JSON Schema of an object that holds the arguments; {} where the card names none.

    Args:
        stated: a card's `api_arguments`.
        call: its `api_call`.
    """
    loaded = {
        argument.value for each in find_calls(call) for argument in each.arguments if argument.text[:1] in ("'", '"')
    }
    properties: dict[str, Any] = {}
    for name, schema in _iterate(stated):
        if _is_name(name) and name not in loaded and len(properties) < MAX_ARGUMENTS:
            properties.setdefault(name, schema)
    return {"type": "object", "properties": properties} if properties else {}


def _iterate(stated: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(stated, str):
        stated = _read_text(stated)
    if isinstance(stated, Mapping):
        for name, value in stated.items():
            yield str(name), _describe_value(value)
        return
    for each in stated if isinstance(stated, list) else ():
        if isinstance(each, Mapping) and isinstance(each.get("name"), str):
            yield each["name"], _describe(each)
        elif isinstance(each, str):
            name, is_given, value = each.partition("=")
            yield name.strip(), _describe_value(value.strip()) if is_given else {}


def _read_text(text: str) -> Any:
    """An object or a list that was written as Python, or names between commas."""
    if text.lstrip()[:1] in ("{", "["):
        try:
            return ast.literal_eval(text.strip())
        except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
            return []
    return text.split(",")


def _is_name(name: str) -> bool:
    return name.isidentifier() and not keyword.iskeyword(name) and len(name) <= _MAX_NAME_CHARS


def _describe(stated: Mapping[str, Any]) -> dict[str, Any]:
    """An argument with `type`, `description` and `default`, of which some may be missing or in no known form."""
    kind = str(stated.get("type", "")).strip().casefold()
    schema: dict[str, Any] = {"type": _TYPE_OF_WORD[kind]} if kind in _TYPE_OF_WORD else {}
    if isinstance(words := stated.get("description"), str) and words.strip():
        schema["description"] = cut_words(" ".join(words.split()), _MAX_VALUE_CHARS)
    default = _convert(stated.get("default"))
    if default is not None and schema.get("type") in (None, _name_type(default)):
        schema["default"] = default
    return schema


def _describe_value(value: Any) -> dict[str, Any]:
    """An argument by a value that it may have."""
    if isinstance(value, list):
        kinds = {_name_type(each) for each in value}
        return {"type": "array", **({"items": {"type": kinds.pop()}} if len(kinds) == 1 and None not in kinds else {})}
    if isinstance(value, Mapping):
        return {"type": "object"}
    value = _convert(value)
    kind = _name_type(value)
    return {} if kind is None else {"type": kind, "examples": [value]}


def _convert(value: Any) -> Any:
    """A text, number or truth value; None for what is none of these, or too long."""
    if isinstance(value, str):
        value = _WORDS.get(value.strip(), value.strip())
        return None if isinstance(value, str) and not 0 < len(value) <= _MAX_VALUE_CHARS else value
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return None


def _name_type(value: Any) -> str | None:
    """JSON Schema's name for a value's type; None for null, lists and objects."""
    if isinstance(value, bool):
        return "boolean"
    kinds = ((str, "string"), (int, "integer"), (float, "number"))
    return next((name for kind, name in kinds if isinstance(value, kind)), None)
