"""Schemas that would take for ever are given up: by what is spent on them, not by how large they are."""

from __future__ import annotations

from typing import Any

import pytest

from data_pipeline.errors import InputError
from serve.chat.arguments import build_arguments
from serve.chat.schema_check import check_schema


def need(schema: dict[str, Any], **definitions: Any) -> dict[str, Any]:
    """Parameters that need a value."""
    return {"type": "object", "properties": {"value": schema}, "required": ["value"], **definitions}


def fan_out(keyword: str) -> dict[str, Any]:
    """Each definition holds the next one four times, so that there are four to the power of twelve ways through."""
    parts = {f"a{i}": {keyword: [{"$ref": f"#/$defs/a{i + 1}"}] * 4} for i in range(12)}
    return need(
        {"type": "string", "default": "x", "anyOf": [{"$ref": "#/$defs/a0"}]},
        **{"$defs": parts | {"a12": {"type": "integer"}}},
    )


@pytest.mark.parametrize(
    "parameters",
    [
        fan_out("allOf"),
        fan_out("anyOf"),
        need({"$ref": "#/$defs/a0"}, **{"$defs": fan_out("allOf")["$defs"]}),
        need({"type": "string", "allOf": [{"pattern": f"^(a+)+{i}$"} for i in range(200)]}),
        need({"anyOf": [{"type": "string", "pattern": f"^(a+)+{i}$"} for i in range(60)]}),
        need({"type": "array", "uniqueItems": True, "default": [{str(i): 0} for i in range(2000)]}),
        need({"type": "array", "default": [0] * 5000, "allOf": [{"items": {"minimum": 0}}] * 200}),
        {"properties": {f"p{i}": {"enum": ["a" * j for j in range(1, 100)]} for i in range(100)}},
    ],
)
def test_what_takes_for_ever_is_given_up(parameters: dict[str, Any]) -> None:
    check_schema(parameters)
    with pytest.raises(InputError, match="simplify"):
        build_arguments(parameters, {}, "a" * 3000 + "b", ())


def test_odd_characters_and_numbers_are_told() -> None:
    for schema in ({"a\ud800": 1}, {"maximum": float("nan")}, {"minLength": -(10**400)}, {"pattern": "("}):
        with pytest.raises(InputError, match=r"is no JSON schema|surrogate"):
            check_schema(schema)
    check_schema({"minItems": 10**400, "pattern": r"^\p{L}+$"})


def test_a_large_schema_that_is_no_trouble_is_worked_through() -> None:
    parts = {f"p{i}": {"type": "string", "enum": ["red", "blue"], "default": "red"} for i in range(1500)}
    parameters = {"properties": parts, "required": list(parts)}
    check_schema(parameters)
    arguments = build_arguments(parameters, {}, "paint it blue", ())
    assert arguments.fault == ""
    assert arguments.text.count("blue") == 1500
