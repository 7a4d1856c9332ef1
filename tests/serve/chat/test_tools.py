"""Offered tools and the arguments of a call: they follow the schema, whoever wrote it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import jsonschema
import pytest

from data_pipeline.errors import InputError
from data_pipeline.records.catalog import Tool
from serve.artifacts import Artifact
from serve.chat.arguments import Arguments, build_arguments
from serve.chat.content import ChatTurn, Conversation, Medium
from serve.chat.schema_check import FORMATS
from serve.chat.schemas import ChatRequest, FunctionDefinition, parse_chat_request
from serve.chat.tools import (
    OfferedTool,
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


def make(parameters: dict[str, Any], words: str, *artifacts: Artifact) -> Arguments:
    read_tool_choice(request_with(tools=[function("f", parameters=parameters)]), {})  # refuses what it must
    tool = offer_function(FunctionDefinition(name="f", parameters=parameters))
    return build_arguments(tool.parameters, tool.media, words, artifacts)


def fill(parameters: dict[str, Any], *artifacts: Artifact) -> Any:
    return json.loads(make(parameters, WORDS, *artifacts).text)


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
    sounds = [artifact("image", 1), artifact("audio", 2), artifact("audio", 3)]
    values = json.loads(build_arguments(tool.parameters, tool.media, WORDS, sounds).text)
    assert values == {
        "audio": f"{2:032x}",
        "style": "softly",
        "semitones": 3,
        "rate": 1.5,
        "prompt": WORDS,
    }
    assert spec.parse(values) == values
    jsonschema.validate(values, dict(tool.parameters))
    without = build_arguments(tool.parameters, tool.media, WORDS, [])
    assert "audio" not in json.loads(without.text), "nobody attached a sound"
    assert without.fault == ""


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


def need(schema: dict[str, Any], **definitions: Any) -> dict[str, Any]:
    """Parameters that need a value."""
    return {"type": "object", "properties": {"value": schema}, "required": ["value"], **definitions}


def parts_of(kind: str, *names: str) -> dict[str, Any]:
    """What pydantic makes of a linked list or a tree for OpenAI's strict mode, in which everything is required."""
    parts = {name: {"anyOf": [{"$ref": f"#/$defs/{kind}"}, {"type": "null"}]} for name in names}
    return {"type": "object", "properties": {"size": {"type": "integer"}, **parts}, "required": ["size", *names]}


CHAIN = {"$defs": {"link": parts_of("link", "next"), "node": parts_of("node", "left", "right")}}
COLOURS = {"$defs": {"colour": {"enum": ["red", "dark red", "blue"]}, "pair": {"$ref": "#/$defs/colour"}}}


@pytest.mark.parametrize(
    ("words", "parameters", "value"),
    [
        ("paint it dark red", need({"$ref": "#/$defs/pair"}, **COLOURS), "dark red"),
        ("paint it dark red", need({"anyOf": [{"$ref": "#/$defs/colour"}, {"type": "null"}]}, **COLOURS), "dark red"),
        ("paint it", need({"anyOf": [{"$ref": "#/$defs/colour"}, {"type": "null"}]}, **COLOURS), None),
        ("paint it bluer", need({"anyOf": [{"enum": ["blue"]}, {"type": "null"}]}), None),
        ("paint it dark red", need({"allOf": [{"$ref": "#/$defs/colour"}, {"type": "string"}]}, **COLOURS), "dark red"),
        ("turn it by 7", need({"anyOf": [{"type": "integer"}, {"type": "null"}]}), 7),
        ("turn it", need({"anyOf": [{"type": "integer"}, {"type": "null"}]}), None),
        ("turn it by 7", need({"type": ["integer", "null"], "maximum": 5}), None),
        ("turn it by 7 of 20", need({"type": "integer", "exclusiveMinimum": 7}), 20),
        ("turn it", need({"type": "integer", "exclusiveMinimum": 7}), 8),
        ("turn it by 7 or 15", need({"type": "integer", "multipleOf": 5}), 15),
        ("turn it", need({"type": "integer", "minimum": 7, "multipleOf": 5}), 10),
        ("turn it by 2.5", need({"oneOf": [{"type": "integer"}, {"type": "number"}]}), 2.5),
        ("ship it to 12345 Berlin", need({"type": "string", "pattern": r"^\d{5}$"}), "12345"),
        ("write to bob@example.org now", need({"type": "string", "format": "email"}), "bob@example.org"),
        ("be there on 2026-12-24.", need({"type": "string", "format": "date"}), "2026-12-24"),
        ("not on 2026-13-24 but 2026-12-25", need({"type": "string", "format": "date"}), "2026-12-25"),
        ("at 2026-12-24T19:30Z sharp", need({"type": "string", "format": "date-time"}), "2026-12-24T19:30Z"),
        ("at 2026-12-24 19:30:05", need({"type": "string", "format": "date-time"}), "2026-12-24 19:30:05"),
        ("at 19:30, please", need({"type": "string", "format": "time"}), "19:30"),
        ("wait PT5M then", need({"type": "string", "format": "duration"}), "PT5M"),
        ("see https://example.org/a?b=c.", need({"type": "string", "format": "uri"}), "https://example.org/a?b=c"),
        ("drop 0b7b1a2e-6f0b-4a1e-9d0f-3a5f2c8e7d11 now", need({"type": "string", "format": "uuid"}),
         "0b7b1a2e-6f0b-4a1e-9d0f-3a5f2c8e7d11"),
        ("ping 300.1.1.1 or 10.0.0.7.", need({"type": "string", "format": "ipv4"}), "10.0.0.7"),
        ("ping fe80::1 now", need({"type": "string", "format": "ipv6"}), "fe80::1"),
        ("some day", need({"anyOf": [{"type": "string", "format": "date"}, {"type": "null"}]}), None),
        ("some day", need({"type": "string", "format": "date", "default": "today"}), "today"),
        ("of that kind", need({"type": "string", "format": "of-my-own"}), "of that kind"),
        ("make it 7", need({"$ref": "#/$defs/link"}, **CHAIN), {"size": 7, "next": None}),
        ("make it 7", need({"$ref": "#/$defs/node"}, **CHAIN), {"size": 7, "left": None, "right": None}),
        ("with tags red and blue", need({"type": "array", "items": {"enum": ["red", "blue", "x"]}}), ["red", "blue"]),
        ("go to Paris", need({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}),
         {"city": "go to Paris"}),
    ],
)  # fmt: skip
def test_what_the_words_give_by_the_schema(words: str, parameters: dict[str, Any], value: Any) -> None:
    arguments = make(parameters, words)
    assert (json.loads(arguments.text), arguments.fault) == ({"value": value}, "")
    jsonschema.validate(json.loads(arguments.text), parameters)


def test_two_numbers_go_to_two_arguments_and_a_named_choice_needs_no_demand() -> None:
    sizes = {name: {"type": "integer"} for name in ("width", "height")}
    parameters = {
        "properties": {**sizes, "unit": {"enum": ["cm", "inch"]}, "note": {}},
        "required": ["width", "height"],
    }
    assert json.loads(make(parameters, "print it 20 by 30 cm").text) == {"width": 20, "height": 30, "unit": "cm"}


def test_a_medium_that_may_be_null_is_the_attached_one_or_null() -> None:
    picture = {"anyOf": [{"type": "string"}, {"type": "null"}]}
    parameters = {"properties": {"image": picture, "mask_image": picture}, "required": ["image", "mask_image"]}
    assert fill(parameters, artifact("image", 1)) == {"image": f"{1:032x}", "mask_image": None}


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "string", "pattern": r"^\d{5}$"}, "pattern"),
        ({"type": "string", "minLength": 400}, "minLength"),
        *(({"type": "string", "format": name}, name) for name in FORMATS),
        ({"type": "object", "properties": {"a": {"type": "string", "format": "date", "maxLength": 3, "minLength": 5}},
          "required": ["a"]}, "format"),
        ({"type": "object", "properties": {"a": {"type": "string", "maxLength": 3, "minLength": 5}},
          "required": ["a"]}, "minLength"),
    ],
)  # fmt: skip
def test_what_the_words_do_not_give_is_said(schema: dict[str, Any], said: str) -> None:
    fault = make(need(schema), "hello").fault
    assert fault.startswith("value")
    assert said in fault


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"properties": 3}, "is no JSON schema: properties"),
        ({"properties": {"a": 3}, "required": ["a"]}, "is no JSON schema"),
        ({"properties": {"a": {"type": "string"}}, "required": "a"}, "is no JSON schema: required"),
        ({"properties": {"a": {"type": "whole"}}}, "is no JSON schema"),
        (need({"$ref": "https://example.org/schema.json"}), "which is not in it"),
        ({"patternProperties": {"^(a+)+$": {}}}, "'patternProperties', which is not supported"),
        ({"$id": "https://example.org"}, "'$id'"),
    ],
)
def test_schemas_that_no_arguments_can_be_made_for_are_refused(parameters: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError) as raised:
        fill(parameters)
    assert said in raised.value.message
    assert (raised.value.code, raised.value.param) == ("bad_schema", "tools.0.function.parameters")


@pytest.mark.parametrize(
    "parameters",
    [
        {"properties": {"a": {"default": float("inf")}}},
        {"properties": {"a": {"type": "integer", "minimum": 10**400}}, "required": ["a"]},
        {"properties": {"$ref": {"type": "string"}, "patternProperties": {"type": "string"}}, "required": ["$ref"]},
        {"properties": {"a": {"enum": ["x"], "const": "x"}}, "required": ["a", "b"]},
    ],
)
def test_odd_schemas_do_no_harm(parameters: dict[str, Any]) -> None:
    tool = offer_function(FunctionDefinition(name="f", parameters=parameters))
    assert isinstance(json.loads(build_arguments(tool.parameters, tool.media, WORDS, ()).text), dict)


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"$ref": "#/$defs/a"},
        {"anyOf": [{"$ref": "#/$defs/b"}]},
        {"$ref": "#/$defs/nowhere"},
    ],
)
def test_references_in_circles_end(schema: dict[str, Any]) -> None:
    parameters = need(schema, **{"$defs": {"a": {"$ref": "#/$defs/a"}, "b": {"anyOf": [{"$ref": "#/$defs/b"}]}}})
    with pytest.raises(InputError, match=r"simplify it|add it to \$defs"):
        make(parameters, WORDS)


def test_a_pattern_that_takes_for_ever_is_given_up() -> None:
    arguments = make(need({"type": "string", "pattern": "^(a+)+$"}), "a" * 40 + "b")
    assert "pattern" in arguments.fault


def test_huge_schemas_are_refused() -> None:
    wide = {f"a{i}": {"type": "string"} for i in range(100)}
    deep: dict[str, Any] = {"type": "array", "minItems": 10**9, "items": {"type": "string"}}
    for properties in (wide, {"a": deep}):
        with pytest.raises(InputError, match="simplify"):
            fill({"type": "object", "properties": properties, "required": list(properties)})


def test_long_schemas_are_refused_before_they_are_worked_on() -> None:
    names = [f"n{i}" for i in range(10_000)]
    parameters = {"properties": {name: {} for name in names}, "required": names}
    for long in ({"parameters": parameters}, {"description": "x" * 100_001}):
        with pytest.raises(RequestError) as raised:
            read_tool_choice(request_with(tools=[function("draw", **long)]), {})
        assert (raised.value.status, raised.value.code) == (413, "schema_too_large")


def test_an_entry_is_offered_with_the_schema_that_the_catalogue_keeps() -> None:
    schema = {"type": "object", "properties": {"image_path": {"type": "string"}, "size": {"type": "integer"}}}
    entry = Tool("lab/crop", "Crops.", "image", parameters=schema)
    assert offer_entry(entry) == OfferedTool("lab/crop", "Crops.", schema, {"image_path": "image"})
    odd = Tool("lab/crop", "Crops.", "image", parameters={**schema, "patternProperties": {"^x": {}}})
    assert offer_entry(odd) == offer_entry(Tool("lab/crop", "Crops.", "image")), "as no arguments can be made for it"


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


def allowed(*names: str, mode: str = "auto") -> dict[str, Any]:
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [function(name) for name in names]}}


def test_some_of_the_tools_may_be_allowed() -> None:
    choice = read_tool_choice(request_with(tool_choice=allowed("lab/edges", mode="required")), CATALOG)
    assert (choice.mode, [tool.name for tool in choice.tools]) == ("required", ["lab/edges"])
    assert choice.is_catalog
    assert not choice.is_open, "the rest of the catalogue has no share"
    brought = [function(name) for name in ("a", "b", "c")]
    choice = read_tool_choice(request_with(tools=brought, tool_choice=allowed("c", "a")), CATALOG)
    assert (choice.mode, [tool.name for tool in choice.tools]) == ("auto", ["a", "c"])
    assert choice.is_own_choice
    with pytest.raises(RequestError, match="'d'") as caught:
        read_tool_choice(request_with(tools=brought, tool_choice=allowed("a", "d")), CATALOG)
    assert caught.value.param == "tool_choice.allowed_tools.tools.1.function.name"


def test_tools_of_ours_go_by_their_ids_and_by_what_clients_call_them() -> None:
    catalog = {tool_id: replace(tool, called=tool_id.replace("/", "__")) for tool_id, tool in CATALOG.items()}
    for name in ("lab/blur", "lab__blur"):
        choice = read_tool_choice(request_with(tool_choice=function(name)), catalog)
        assert (choice.named, choice[choice.named].client_name) == ("lab/blur", "lab__blur")
        choice = read_tool_choice(request_with(tool_choice=allowed(name)), catalog)
        assert [tool.name for tool in choice.tools] == ["lab/blur"]
        own = {"type": "object", "properties": {"words": {"type": "string"}}}
        for more, parameters in (({}, catalog["lab/blur"].parameters), ({"parameters": own}, own)):
            choice = read_tool_choice(request_with(tools=[function(name, **more), function("mine")]), catalog)
            ours, mine = choice.tools
            assert (ours.name, ours.client_name, ours.parameters) == ("lab/blur", name, parameters)
            assert (mine.name, mine.client_name) == ("mine", "mine")
    with pytest.raises(RequestError, match="twice") as caught:
        read_tool_choice(request_with(tools=[function("lab/blur"), function("lab__blur")]), catalog)
    assert caught.value.param == "tools.1.function.name"


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
