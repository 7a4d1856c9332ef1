from __future__ import annotations

from typing import Any

import pytest
from jsonschema import Draft202012Validator

from data_pipeline.errors import InputError
from serve.tools.all_tools import load_tools
from serve.tools.spec import Argument, ToolOutput, ToolSpec, picture_argument

SPEC = ToolSpec(
    "local/example",
    lambda **_: ToolOutput(),
    "An example.",
    (
        picture_argument(),
        Argument("style", "text", "how it looks", "soft", choices=("soft", "hard")),
        Argument("strength", "number", "how much", 0.5, minimum=0, maximum=1),
        Argument("count", "integer", "how many", 3, minimum=1),
    ),
    "image",
)


def test_defaults_fill_in_and_values_keep_their_types() -> None:
    assert SPEC.parse({"image": "a1"}) == {"image": "a1", "style": "soft", "strength": 0.5, "count": 3}
    parsed = SPEC.parse({"image": "a1", "style": "hard", "strength": 1, "count": 4.0})
    assert parsed == {"image": "a1", "style": "hard", "strength": 1.0, "count": 4}
    assert type(parsed["strength"]) is float
    assert type(parsed["count"]) is int


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "needs the argument 'image'"),
        ({"image": 3}, "give the id of an artifact"),
        ({"image": "  "}, "not blank"),
        ({"image": "a", "colour": 1}, "takes image, style, strength, count"),
        ({"image": "a", "style": "loud"}, "one of soft, hard"),
        ({"image": "a", "strength": 1.5}, "from 0 to 1"),
        ({"image": "a", "strength": "much"}, "a finite number"),
        ({"image": "a", "strength": float("nan")}, "a finite number"),
        ({"image": "a", "strength": 10**400}, "a finite number"),
        ({"image": "a", "strength": True}, "a finite number"),
        ({"image": "a", "count": 2.5}, "a whole number"),
        ({"image": "a", "count": 0}, "from 1 to inf"),
        ({"image": "a" * 30_000}, "1 to 20,000"),
        ({"image": "a", "count": float("inf")}, "a whole number"),
        ({"image": "a", "count": 10**400}, "a whole number"),
        ({"image": "a", "count": "3"}, "a whole number"),
        ({"image": "a", "style": 3}, "give text"),
        ({"image": "a", "colour": None}, "no argument 'colour'"),
        ({"image": None}, "needs the argument 'image'"),
        ([], "give an object"),
    ],
)
def test_a_wrong_value_is_told_in_one_sentence(values: Any, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        SPEC.parse(values)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)
    assert not any(
        word in str(caught.value) for word in ("is not of type", "instance", "property", "schema", "'string'")
    )


def test_every_tools_schema_is_one() -> None:
    for spec in load_tools().values():
        Draft202012Validator.check_schema(spec.json_schema())


def test_the_json_schema_says_the_same() -> None:
    schema = SPEC.json_schema()
    assert schema["required"] == ["image"]
    assert schema["additionalProperties"] is False
    properties = schema["properties"]
    assert properties["image"]["type"] == "string"
    assert properties["image"]["pattern"] == r"\S"
    assert properties["style"]["enum"] == ["soft", "hard"]
    assert properties["strength"] == {
        "type": "number", "description": "how much", "default": 0.5, "minimum": 0, "maximum": 1,
    }  # fmt: skip
    assert properties["count"]["type"] == "integer"


def test_a_spec_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(InputError, match="model_id"):
        ToolSpec("local/x", SPEC.run, "", (), "text", method="model")
    with pytest.raises(InputError, match="two arguments"):
        ToolSpec("local/x", SPEC.run, "", (picture_argument(), picture_argument()), "text")
