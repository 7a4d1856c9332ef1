"""Offered tools and the arguments of a call: they follow the schema, whoever wrote it."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from data_pipeline.records.catalog import Tool
from serve.artifacts import Artifact
from serve.chat.content import ChatTurn, Conversation, Medium
from serve.chat.schemas import ChatRequest, FunctionDefinition, parse_chat_request
from serve.chat.tools import (
    OfferedTool,
    build_arguments,
    offer_entry,
    offer_function,
    offer_spec,
    read_tool_choice,
    selection_artifact,
)
from serve.http.schemas import RequestError
from serve.tools.spec import Argument, ToolOutput, ToolSpec

WORDS = "turn it 3 semitones up, softly"
CATALOG = {name: offer_entry(Tool(name, input_modality="image")) for name in ("lab/blur", "lab/edges")}


def artifact(modality: str, number: int = 1) -> Artifact:
    return Artifact(f"{number:032x}", f"{modality}/x", modality, 1, "", 0, 1)


def request_with(**fields: Any) -> ChatRequest:
    body = {"model": "demo", "messages": [{"role": "user", "content": WORDS}], **fields}
    return parse_chat_request(json.dumps(body).encode())


def function(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **more}}


def fill(parameters: dict[str, Any], *artifacts: Artifact) -> Any:
    return json.loads(
        build_arguments(offer_function(FunctionDefinition(name="f", parameters=parameters)), WORDS, artifacts)
    )


def test_arguments_of_a_tool_of_ours() -> None:
    spec = ToolSpec(
        "local/shift",
        lambda: ToolOutput(),
        "shifts",
        (
            Argument("audio", "audio", "sound"),
            Argument("style", "text", "how", choices=("softly", "loudly")),
            Argument("semitones", "integer", "how far", minimum=-12, maximum=12),
            Argument("rate", "number", "how fast", default=1.5, minimum=0.5, maximum=2),
            Argument("prompt", "text", "words"),
        ),
        "audio",
    )
    tool = offer_spec(spec)
    values = json.loads(
        build_arguments(tool, WORDS, [artifact("image", 1), artifact("audio", 2), artifact("audio", 3)])
    )
    assert values == {
        "audio": f"{2:032x}",
        "style": "softly",
        "semitones": 3,
        "rate": 1.5,
        "prompt": WORDS,
    }
    assert spec.parse(values) == values
    jsonschema.validate(values, dict(tool.parameters))
    assert "audio" not in json.loads(build_arguments(tool, WORDS, [])), "nobody attached a sound"


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        (
            {"image_url": {"type": "string"}, "input_audio_path": {"type": "string"}},
            {"image_url": 1, "input_audio_path": 2},
        ),
        ({"referenceImage": {"type": "string"}, "video": {"type": "string"}}, {"referenceImage": 1}),
        ({"x": {"type": "string", "contentMediaType": "audio/*"}, "file": {}}, {"x": 2, "file": 1}),
        ({"image_caption": {"type": "string"}, "image_id": {"type": "integer"}}, {}),
    ],
)
def test_media_of_a_callers_tool(parameters: dict[str, Any], expected: dict[str, int]) -> None:
    found = fill({"type": "object", "properties": parameters}, artifact("image", 1), artifact("audio", 2))
    assert found == {name: f"{number:032x}" for name, number in expected.items()}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string"},
        {"type": "string", "maxLength": 5},
        {"enum": ["red", "up", "semitones"]},
        {"type": "integer", "minimum": 10},
        {"type": "number", "maximum": -2.5},
        {"type": "number", "minimum": 3.5, "maximum": 4},
        {"type": ["null", "boolean"]},
        {"const": {"a": 1}},
        {"type": "array", "minItems": 2, "items": {"type": "integer"}},
        {"type": "array", "items": {"type": "integer"}},
        {"type": "object", "properties": {"a": {"type": "string"}, "b": {}}, "required": ["a"]},
        {"type": "null"},
        {},
    ],
)
def test_values_satisfy_a_callers_schema(schema: dict[str, Any]) -> None:
    parameters = {"type": "object", "properties": {"value": schema, "other": {"type": "string"}}, "required": ["value"]}
    found = fill(parameters)
    assert list(found) == ["value"]
    jsonschema.validate(found, parameters)


@pytest.mark.parametrize(
    "parameters",
    [
        {"properties": 3},
        {"properties": {"a": 3}, "required": ["a"]},
        {"properties": {"a": {"type": "string"}}, "required": "a"},
        {"properties": {"a": {"default": float("inf")}}},
        {"properties": {"a": {"type": "integer", "minimum": 10**400, "maximum": float("nan")}}, "required": ["a"]},
        {"properties": {"a": {"type": "array", "minItems": -3, "items": {}}}, "required": ["a"]},
        {"properties": {"a": {"type": "string", "maxLength": "x"}}, "required": ["a", 3]},
        {"properties": {"a": {"type": [], "enum": []}}, "required": ["a"]},
    ],
)
def test_malformed_schemas_do_no_harm(parameters: dict[str, Any]) -> None:
    assert isinstance(fill(parameters), dict)


def test_huge_schemas_are_refused() -> None:
    wide = {f"a{i}": {"type": "string"} for i in range(100)}
    deep: dict[str, Any] = {"type": "array", "minItems": 10**9, "items": {"type": "string"}}
    for properties in (wide, {"a": deep}):
        with pytest.raises(RequestError, match="simplify"):
            fill({"type": "object", "properties": properties, "required": list(properties)})


def test_long_schemas_are_refused_before_they_are_worked_on() -> None:
    names = [f"n{i}" for i in range(10_000)]
    parameters = {"properties": {name: {} for name in names}, "required": names}
    with pytest.raises(RequestError) as raised:
        read_tool_choice(request_with(tools=[function("draw", parameters=parameters)]), {})
    assert (raised.value.status, raised.value.code) == (413, "schema_too_large")


def test_what_is_offered_and_wanted() -> None:
    plain = read_tool_choice(request_with(), CATALOG)
    assert (plain.mode, [tool.name for tool in plain.tools], plain.is_catalog) == ("auto", list(CATALOG), True)
    brought = [function("lab/edges"), function("mine", description="my own", parameters={"type": "object"})]
    choice = read_tool_choice(request_with(tools=brought, tool_choice="required"), CATALOG)
    assert (choice.mode, choice.is_catalog) == ("required", False)
    assert choice["lab/edges"] is CATALOG["lab/edges"], "a tool of ours keeps its arguments"
    assert choice["mine"] == OfferedTool("mine", "my own", {"type": "object"}, {})
    assert read_tool_choice(request_with(tool_choice=function("lab/blur")), CATALOG).named == "lab/blur"
    assert read_tool_choice(request_with(tool_choice="none"), CATALOG).mode == "none"


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [function("a"), function("a")]},
        {"tools": [function("a b")]},
        {"tools": [function("unknown")]},
        {"tools": [function("a")], "tool_choice": function("lab/blur")},
        {"tool_choice": function("mine")},
    ],
)
def test_bad_choices_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as caught:
        read_tool_choice(request_with(**fields), CATALOG)
    assert caught.value.status == 400


def test_a_tool_is_chosen_for_one_medium() -> None:
    media = tuple(Medium("image", "", artifact=artifact("image", i)) for i in (1, 2))
    assert selection_artifact(Conversation((ChatTurn("user", "a"),))) is None
    earlier = Conversation((ChatTurn("user", "a", media), ChatTurn("user", "b")))
    assert selection_artifact(earlier) in [medium.artifact for medium in media]
    assert selection_artifact(Conversation((ChatTurn("user", "b", media[1:]),))) == media[1].artifact
    with pytest.raises(RequestError, match="2 media"):
        selection_artifact(Conversation((ChatTurn("user", "b", media),)))
