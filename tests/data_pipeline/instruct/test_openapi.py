"""OpenAPI's operations as functions: parameters and body in one schema that stands for itself."""

from __future__ import annotations

from typing import Any

import pytest

from data_pipeline.errors import InputError
from data_pipeline.instruct.openapi import build_parameters, read_operations
from data_pipeline.records.parameters import check_parameters

PET = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "nullable": True},
        "weight": {"type": "number", "minimum": 0, "exclusiveMinimum": True},
        "mother": {"$ref": "#/components/schemas/Pet"},
        "kind": {"$ref": "#/components/schemas/Kind"},
    },
    "required": ["name"],
}


def api(version: str, operation: dict[str, Any], **item: Any) -> dict[str, Any]:
    return {
        "openapi": version,
        "paths": {"/pets/{id}": {"put": {"operationId": "savePet", "summary": "Saves a pet.", **operation}, **item}},
        "components": {
            "schemas": {"Pet": PET, "Kind": {"type": "string", "enum": ["cat", "dog"]}},
            "parameters": {"Id": {"name": "id", "in": "path", "required": True, "schema": {"type": "integer"}}},
        },
    }


def read(content: dict[str, Any]) -> dict[str, Any]:
    (operation,) = read_operations(content)
    return build_parameters(content, operation)


def test_parameters_and_body_are_one_schema() -> None:
    listed = [
        {"name": "dry", "in": "query", "description": "Only try.", "schema": {"type": "boolean"}},
        {"in": "query"},
    ]
    sent = {"required": True, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Pet"}}}}
    shared = [{"$ref": "#/components/parameters/Id"}, {"name": "dry", "in": "query", "schema": {"type": "string"}}]
    parameters = read(api("3.0.3", {"parameters": listed, "requestBody": sent}, parameters=shared))
    check_parameters(parameters)
    weight = {"type": "number", "exclusiveMinimum": 0}
    own = {
        "name": {"type": ["string", "null"]},
        "weight": weight,
        "mother": {"$ref": "#/$defs/Pet"},
        "kind": {"$ref": "#/$defs/Kind"},
    }
    assert parameters == {
        "type": "object",
        "properties": own | {"dry": {"description": "Only try.", "type": "boolean"}, "id": {"type": "integer"}},
        "required": ["id", "name"],
        "$defs": {
            "Pet": {"type": "object", "properties": own, "required": ["name"]},
            "Kind": {"type": "string", "enum": ["cat", "dog"]},
        },
    }


def test_version_3_1_is_json_schema_as_it_stands() -> None:
    schema = {"type": "number", "exclusiveMinimum": 0}
    parameters = read(api("3.1.0", {"parameters": [{"name": "weight", "in": "query", "schema": schema}]}))
    assert parameters == {"type": "object", "properties": {"weight": schema}}


def test_a_body_that_is_no_object_is_one_argument() -> None:
    names = {"type": "array", "items": {"type": "string"}}
    for is_required in (True, False):
        body = {"required": is_required, "content": {"text/csv": {"schema": names}}}
        parameters = read(api("3.1.0", {"requestBody": body}))
        assert parameters["properties"] == {"body": names}
        assert parameters.get("required", []) == ["body"] * is_required


def test_what_takes_nothing_has_no_schema() -> None:
    assert read(api("3.1.0", {})) == {}
    assert read(api("3.1.0", {"requestBody": {"content": {}}, "parameters": [7, {"$ref": "#/nowhere"}]})) == {}


def test_references_that_lead_nowhere_are_left_for_the_check() -> None:
    schema = {"$ref": "#/components/schemas/Owner"}
    parameters = read(api("3.1.0", {"parameters": [{"name": "owner", "in": "query", "schema": schema}]}))
    with pytest.raises(InputError, match="refer to '#/components/schemas/Owner'"):
        check_parameters(parameters)


def test_an_endless_schema_ends() -> None:
    part: list[Any] = ["x"]
    for _ in range(25):
        part = [part, part]
    schema = {"enum": part}
    with pytest.raises(InputError, match=r"^have more than 20,000 parts"):
        read(api("3.1.0", {"parameters": [{"name": "a", "in": "query", "schema": schema}]}))
