"""Arguments as Gorilla's cards write them, in all their forms."""

from __future__ import annotations

from typing import Any

import pytest

from data_pipeline.instruct.card_arguments import MAX_ARGUMENTS, build_schema
from data_pipeline.records.parameters import check_parameters

CALL = "torch.hub.load('lab/models', 'resnest50', pretrained=True)"


@pytest.mark.parametrize(
    ("stated", "properties"),
    [
        (
            [{"name": "size", "type": "Int", "default": 3, "description": " How\nlarge "}],
            {"size": {"type": "integer", "default": 3, "description": "How large"}},
        ),
        (
            [{"name": "pretrained", "type": "bool", "default": "False"}],
            {"pretrained": {"type": "boolean", "default": False}},
        ),
        ([{"name": "device", "type": "torch.device", "default": None}, {"type": "str"}, 7], {"device": {}}),
        (["image", "text"], {"image": {}, "text": {}}),
        (["'lab/models'", "'resnest50'", "pretrained=True"], {"pretrained": {"type": "boolean", "examples": [True]}}),
        ("question, context", {"question": {}, "context": {}}),
        (
            "{'a': 'b c', 'n': 2}",
            {"a": {"type": "string", "examples": ["b c"]}, "n": {"type": "integer", "examples": [2]}},
        ),
        (
            {"conf": 0.25, "on": False},
            {"conf": {"type": "number", "examples": [0.25]}, "on": {"type": "boolean", "examples": [False]}},
        ),
        (
            {"labels": ["a", "b"], "mixed": ["a", 1]},
            {"labels": {"type": "array", "items": {"type": "string"}}, "mixed": {"type": "array"}},
        ),
        (
            {"kwargs": {"a": 1}, "none": None, "nan": float("nan")},
            {"kwargs": {"type": "object"}, "none": {}, "nan": {}},
        ),
    ],
)
def test_every_form(stated: Any, properties: dict[str, Any]) -> None:
    schema = build_schema(stated, CALL)
    assert schema == {"type": "object", "properties": properties}
    check_parameters(schema)


@pytest.mark.parametrize(
    "stated", [None, "", "N/A", "pretrained model name", "resnest50", [], {}, 7, "{'a': ", "[" * 9999, ["lambda"]]
)
def test_what_names_no_argument(stated: Any) -> None:
    assert build_schema(stated, CALL) == {}


def test_a_card_without_end_gives_a_schema_that_a_catalogue_takes() -> None:
    schema = build_schema(
        [{"name": f"a{n:063}", "description": "word " * 999, "default": "x" * 120} for n in range(999)], CALL
    )
    assert len(schema["properties"]) == MAX_ARGUMENTS
    check_parameters(schema)
