"""JSON Schemas of what tools take, as a catalogue keeps them: they come from others, so form and size are checked."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

from jsonschema import Draft202012Validator, SchemaError

from data_pipeline.errors import InputError
from data_pipeline.records.text import check_encodable

MAX_SCHEMA_CHARS = 20_000  # of all its keys and values
MAX_SCHEMA_DEPTH = 32
_MAX_FAULT_CHARS = 200


def check_parameters(schema: object) -> None:
    """Refuse what is no JSON schema (draft 2020-12) of an object, or refers to what is not in it.

    Raises:
        InputError: what is wrong, to follow "the parameters ...", without a full stop.
    """
    if not isinstance(schema, dict):
        raise InputError("are no JSON object")
    _check_size(schema)
    if fault := _find_fault(json.dumps(schema)):
        raise InputError(fault)


def list_arguments(schema: Mapping[str, Any]) -> tuple[str, ...]:
    """The names in a checked schema, in its order, those that a call must give first."""
    names = list(filter(None, schema.get("properties", {})))
    required = schema.get("required", [])
    return tuple(sorted(names, key=lambda name: name not in required))


def _check_size(schema: dict[Any, Any]) -> None:
    """Before anything walks through it: YAML's aliases let a short file stand for an endless schema."""
    n_chars = 0
    left: list[tuple[Any, int]] = [(schema, 0)]
    while left:
        value, depth = left.pop()
        if depth > MAX_SCHEMA_DEPTH:
            raise InputError(f"are nested more than {MAX_SCHEMA_DEPTH} deep")
        if isinstance(value, dict):
            if not all(isinstance(key, str) for key in value):
                raise InputError("have a key that is no text")
            n_chars += sum(map(len, value))
            left += [(each, depth + 1) for each in value.values()]
        elif isinstance(value, list):
            left += [(each, depth + 1) for each in value]
        elif isinstance(value, str):
            n_chars += len(value)
        elif not (value is None or isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))):
            raise InputError(f"hold a {type(value).__name__} that JSON cannot write")
        n_chars += 1
        if n_chars > MAX_SCHEMA_CHARS:
            raise InputError(f"have more than {MAX_SCHEMA_CHARS:,} characters")


@lru_cache(maxsize=1024)  # a chat's tools come again with every row
def _find_fault(text: str) -> str:
    schema = json.loads(text)
    try:
        check_encodable(json.dumps(schema, ensure_ascii=False))
        Draft202012Validator.check_schema(schema)
    except InputError as error:
        return f"are no text: {error}".rstrip(".")
    except SchemaError as error:
        where = "".join(f"{part}: " for part in [".".join(map(str, error.absolute_path))] if part)
        return f"are no JSON schema: {where}{error.message[:_MAX_FAULT_CHARS]}"
    if schema.get("type", "object") != "object":
        return f"describe no object, but {str(schema['type'])[:_MAX_FAULT_CHARS]!r}"
    strangers = [target for target in _list_references(schema) if not _is_found(schema, target)]
    return f"refer to {strangers[0][:_MAX_FAULT_CHARS]!r}, which is not in them" if strangers else ""


def _list_references(value: Any) -> list[str]:
    if isinstance(value, list):
        return [target for each in value for target in _list_references(each)]
    if not isinstance(value, dict):
        return []
    own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
    return own + [target for each in value.values() for target in _list_references(each)]


def _is_found(schema: Any, target: str) -> bool:
    """Whether a JSON pointer (RFC 6901) in a fragment leads to a part of the schema; anchors are taken as they are."""
    if not target.startswith("#/"):
        return target.startswith("#")
    for part in unquote(target).split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(schema, list) and key.isdecimal() and int(key) < len(schema):
            schema = schema[int(key)]
        elif isinstance(schema, dict) and key in schema:
            schema = schema[key]
        else:
            return False
    return True
