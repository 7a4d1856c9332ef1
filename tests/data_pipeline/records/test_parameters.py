"""What may stand in a catalogue as the JSON Schema of a tool's arguments."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest

from data_pipeline.errors import InputError
from data_pipeline.records.parameters import MAX_SCHEMA_CHARS, MAX_SCHEMA_DEPTH, check_parameters, list_arguments


def nest(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"not": schema}
    return schema


def double(times: int) -> list[Any]:
    """A list that a few kilobytes of YAML aliases stand for."""
    part: list[Any] = ["x"]
    for _ in range(times):
        part = [part, part]
    return part


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object", "properties": {"city": {"type": ["string", "null"], "default": None}}, "required": ["city"]},
        {
            "properties": {"a": {"$ref": "#/$defs/a~1b"}, "$ref": {"type": "string"}},
            "$defs": {"a/b": {"type": "number"}},
        },
        {"properties": {"a": {"anyOf": [{"$ref": "#"}, {"$ref": "#/properties/a/anyOf/0"}]}}},
        nest(MAX_SCHEMA_DEPTH),
        {"description": "x" * (MAX_SCHEMA_CHARS - 20)},
    ],
)
def test_schemas_that_are_kept(schema: dict[str, Any]) -> None:
    check_parameters(schema)


@pytest.mark.parametrize(
    ("schema", "fault"),
    [
        ([], "are no JSON object"),
        ({"properties": {"a": {"type": "int"}}}, "are no JSON schema: properties.a.type: 'int' is not valid"),
        ({"required": "city"}, "are no JSON schema: required: 'city' is not of type 'array'"),
        ({"type": "string"}, "describe no object, but 'string'"),
        ({"properties": {"a": {"$ref": "#/$defs/a"}}}, "refer to '#/\\$defs/a', which is not in them"),
        ({"$ref": "https://example.org/schema.json"}, "refer to 'https://example.org"),
        ({"enum": [float("inf")]}, "hold a float that JSON cannot write"),
        ({"default": date(2024, 1, 1)}, "hold a date that JSON cannot write"),
        ({True: {}}, "have a key that is no text"),
        ({"description": "\ud800"}, "are no text: the text holds a lone surrogate"),
        (nest(MAX_SCHEMA_DEPTH + 1), "are nested more than 32 deep"),
        ({"enum": double(60)}, "are nested more than 32 deep"),
        ({"enum": double(25)}, "have more than 20,000 characters"),
        ({"description": "x" * MAX_SCHEMA_CHARS}, "have more than 20,000 characters"),
    ],
)
def test_what_is_refused(schema: Any, fault: str) -> None:
    with pytest.raises(InputError, match=f"^{fault}") as caught:
        check_parameters(schema)
    assert len(str(caught.value)) < 400


def test_required_arguments_come_first() -> None:
    schema = {"properties": {"unit": {}, "city": {}, "": {}, "day": {}}, "required": ["day", "city"]}
    assert list_arguments(schema) == ("city", "day", "unit")
    assert list_arguments({}) == ()
