"""What JSON schemas of callers may hold, and whether values fit them.

Schemas come from callers, so their depth, references and patterns are bounded; nothing is fetched.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import regex
from jsonschema import Draft202012Validator, SchemaError, ValidationError
from jsonschema.exceptions import best_match
from jsonschema.validators import extend
from referencing import Registry

from data_pipeline.errors import InputError

MAX_DEPTH = 32  # of a schema

_PATTERN_S = 0.05  # for one search: a caller's pattern may be made to take for ever
_REFUSED_KEYS = ("patternProperties", "propertyNames", "$dynamicRef", "$recursiveRef", "$id", "$anchor")


def check_schema(schema: Mapping[str, Any]) -> None:
    """Refuse a schema that no arguments can be made for, in one sentence.

    Raises:
        InputError: it is no JSON schema, nests too deep, points out of itself, or uses a keyword that is not supported.
    """
    for keyword, value in _walk(schema):
        if keyword in _REFUSED_KEYS:
            raise InputError(f"uses {keyword!r}, which is not supported; leave it out")
        if keyword == "$ref" and not (isinstance(value, str) and value.startswith("#")):
            raise InputError(f"refers to {str(value)[:80]!r}, which is not in it; put the definition into $defs")
    try:
        Draft202012Validator.check_schema(dict(schema))
    except SchemaError as error:
        where = ".".join(map(str, error.absolute_path)) or "schema"
        raise InputError(f"is no JSON schema: {where}: {error.message[:200]}") from None


def find_fault(schema: Mapping[str, Any], values: Any, missing: set[str]) -> str:
    """In one sentence what is wrong with the values; "" where they are valid but for the missing."""
    try:
        faults = [
            error
            for error in build_validator(schema, schema).iter_errors(values)
            if not (missing and error.validator == "required" and not error.path)
        ]
    except RecursionError:
        raise InputError("its schema refers to itself without end; simplify it.") from None
    fault: ValidationError | None = best_match(iter(faults))
    if fault is None:
        return ""
    where = ".".join(map(str, fault.absolute_path)) or "the arguments"
    wanted = {str(fault.validator): fault.validator_value}
    return f"{where} must fit {json.dumps(wanted, default=str)[:200]}, and your words give nothing that does"


def _check_pattern(_: Any, pattern: str, instance: Any, __: Any) -> Iterator[ValidationError]:
    if isinstance(instance, str) and search(pattern, instance) is None:
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


_Validator: Any = extend(Draft202012Validator, {"pattern": _check_pattern})


def build_validator(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Any:
    """Of a part of a schema, which may refer to what the whole defines; nothing is fetched."""
    definitions = {key: root[key] for key in ("$defs", "definitions") if key in root and key not in schema}
    return _Validator({**schema, **definitions}, registry=Registry())


def search(pattern: str, text: str) -> Any:
    """A caller's pattern in a text; None where it is none, is not found, or takes too long."""
    try:
        return regex.search(pattern, text, timeout=_PATTERN_S)
    except (regex.error, TimeoutError):
        return None


def _walk(schema: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every keyword of a schema and of what lies in it; what properties are called is no keyword."""
    waiting: list[tuple[Any, int, bool]] = [(schema, 0, False)]
    while waiting:
        value, depth, is_named = waiting.pop()
        if depth > 2 * MAX_DEPTH:
            raise InputError(f"nests deeper than {MAX_DEPTH} levels; simplify it")
        if isinstance(value, Mapping):
            for key, inner in value.items():
                if not is_named:
                    yield key, inner
                if is_named or key not in ("enum", "const", "default", "examples"):
                    names = not is_named and key in ("properties", "$defs", "definitions")
                    waiting.append((inner, depth + 1, names))
        elif isinstance(value, list):
            waiting += [(inner, depth + 1, False) for inner in value]
