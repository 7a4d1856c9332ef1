"""Faults of JSON bodies: the path is the sender's, the words are about JSON."""

from __future__ import annotations

import json
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, Tag

from serve.http.json_body import form, parse_body, told_by
from serve.http.schemas import RequestError


class Circle(BaseModel):
    radius: float = Field(gt=0)


class Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    shapes: list[
        Annotated[
            Annotated[str, Tag(form("text"))] | Annotated[Circle, Tag(form("circle"))],
            told_by("kind", "a name or an object whose kind is 'circle'"),
        ]
    ] = Field([], max_length=2)
    gone: None = None


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"shapes": ["a", {"kind": "circle"}]}, "shapes.1.radius", "is missing"),
        ({"shapes": [{"kind": "circle", "radius": 0}]}, "shapes.0.radius", "greater than 0"),
        ({"shapes": [{"kind": "cube"}]}, "shapes.0", "a name or an object whose kind is 'circle'"),
        ({"shapes": [{"kind": 3}]}, "shapes.0", "a name or"),
        ({"shapes": [None]}, "shapes.0", "a name or"),
        ({"shapes": ["a"] * 3}, "shapes", "2 or fewer"),
        ({"gone": {}}, "gone", "not supported"),
        ({"new": 1}, "new", "not known"),
        ([], None, "an object"),
        (3, None, "an object"),
    ],
)
def test_a_fault_names_its_field(body: Any, param: str | None, words: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_body(Body, json.dumps(body).encode())
    assert (caught.value.code, caught.value.param) == ("bad_field", param)
    assert words in caught.value.message
    assert "Input" not in caught.value.message


def test_what_is_right_is_read() -> None:
    body = parse_body(Body, b'{"shapes": ["a", {"kind": "circle", "radius": 2}]}')
    assert body.shapes == ["a", Circle(radius=2)]
    with pytest.raises(RequestError, match="not valid JSON") as caught:
        parse_body(Body, b"{")
    assert caught.value.code == "bad_json"
