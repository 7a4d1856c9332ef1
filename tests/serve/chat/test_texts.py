"""Texts for a call's arguments: parts of the user's words, likeliest together, and never anything else."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.records.catalog import UNKNOWN_TOOL_ID
from serve.chat.content import ChatTurn, Conversation
from serve.chat.schemas import FunctionDefinition, Usage, parse_chat_request
from serve.chat.texts import MAX_CHARS, MAX_TEXTS, call_with_texts, choose_parts, copy_texts, list_parts
from serve.chat.tools import offer_function, read_tool_choice
from serve.engine.messages import PartQuery, RankedParts

MAIL = {
    "type": "object",
    "properties": {
        "to": {"type": "string", "description": "Who gets it"},
        "text": {"type": "string", "minLength": 3},
        "kind": {"enum": ["mail", "letter"]},
        "note": {"type": "string"},
    },
    "required": ["to", "text", "kind"],
}
WORDS = "Send a mail to Bob saying that I am late"


def weighing(**likely: dict[str, float]) -> tuple[Any, list[PartQuery]]:
    """What stands for the predictor: argument -> its likely parts; and what it was asked."""
    asked: list[PartQuery] = []

    async def ask(queries: list[PartQuery]) -> list[RankedParts]:
        asked.extend(queries)
        names = [query.prompt.rpartition("Argument: ")[2].partition(" (")[0] for query in queries]
        for query, name in zip(queries, names, strict=True):
            assert set(likely[name]) <= set(query.parts)
        return [RankedParts(sorted(likely[name].items(), key=lambda pair: -pair[1]), 10, 4) for name in names]

    return ask, asked


def copy(ask: Any, parameters: dict[str, Any], words: str) -> tuple[list[str], int, int]:
    tool = offer_function(FunctionDefinition(name="mail", description="Writes to\nsomebody.", parameters=parameters))
    return asyncio.run(copy_texts(ask, tool, words, []))


def test_parts_are_runs_of_words_without_marks_around() -> None:
    parts = list_parts('Show  "the red\none" to Dr. Smith, please (a.txt)?')
    assert {"the red one", "Smith", "Dr. Smith", "a.txt", "red"} <= set(parts)
    assert not {"to Dr. Smith", "Smith,", "the", "Show the"} & set(parts)
    assert 'Show "the red one" to Dr. Smith, please (a.txt)?' in parts, "all of the words"
    start, end = parts["the red one"]
    assert 'Show  "the red\none" to Dr. Smith, please (a.txt)?'[start:end] == "the red\none"
    long = "Note: " + "word " * 40 + "end"
    assert "word " * 40 + "end" in list_parts(long), "however long, to the end of the words"
    assert list_parts("a" * (MAX_CHARS + 1)) == {}
    assert list_parts("") == {"": (0, 0)}


@settings(max_examples=60, deadline=None)
@given(st.text(st.sampled_from("ab \n\t.\"'`(){}\u201c\u201dto,\u00e9"), min_size=1, max_size=60))
def test_every_part_stands_in_the_words(words: str) -> None:
    for part, (start, end) in list_parts(words).items():
        assert " ".join(words[start:end].split()) == part
        assert "\n" not in part


def test_arguments_share_no_words_where_they_need_not() -> None:
    places = list_parts("from London to Tokyo")
    origin, target = [("London", 0.9), ("Tokyo", 0.1)], [("London", 0.8), ("Tokyo", 0.2)]
    assert choose_parts([origin, target], places) == ["London", "Tokyo"]
    assert choose_parts([target, origin], places) == ["Tokyo", "London"]
    assert choose_parts([[("London", 1.0)], [("London", 1.0)]], places) == ["London", "London"]
    assert choose_parts([origin, [], target], places) == ["London", None, "Tokyo"]
    assert choose_parts([], places) == []


def test_the_model_weighs_what_the_schema_allows() -> None:
    ask, asked = weighing(to={"Bob": 0.6, "a mail": 0.2}, text={"Bob": 0.7, "I am late": 0.3})
    assert copy(ask, MAIL, WORDS) == (["Bob", "I am late"], 20, 8)
    to, text = asked
    assert to.prompt.endswith(
        f'Request: {WORDS}\nFunction: mail (Writes to somebody.)\nArgument: to (Who gets it)\nValue: "'
    )
    assert text.prompt.endswith('Argument: text (text)\nValue: "')
    assert "I" in to.parts
    assert "I" not in text.parts, "shorter than the schema allows"


def test_nothing_is_asked_where_nothing_is_open() -> None:
    ask, asked = weighing()
    no_text = {
        "type": "object",
        "properties": {"n": {"type": "integer"}, "note": {"type": "string"}},
        "required": ["n"],
    }
    assert copy(ask, no_text, WORDS) == ([], 0, 0)
    assert copy(ask, MAIL, "Hello") == ([], 0, 0), "one word: there is no choice"
    assert copy(ask, MAIL, "long " * MAX_CHARS) == ([], 0, 0)
    nowhere = {**MAIL, "properties": {**MAIL["properties"], "to": {"$ref": "#/$defs/none"}}}
    assert copy(ask, nowhere, WORDS) == ([], 0, 0), "told where the call is made"
    pattern = {"type": "object", "properties": {"to": {"type": "string", "pattern": "a"}}, "required": ["to"]}
    assert copy(ask, pattern, WORDS) == ([], 0, 0), "a caller's pattern may take long, and is searched for once"
    never = {"type": "object", "properties": {"to": {"type": "string", "minLength": 999}}, "required": ["to"]}
    assert copy(ask, never, WORDS) == ([WORDS], 0, 0)
    assert asked == []
    names = [f"a{i}" for i in range(MAX_TEXTS + 3)]
    many = {"type": "object", "properties": {name: {"type": "string"} for name in names}, "required": names}
    ask, asked = weighing(**{name: {"Bob": 1.0} for name in names})
    texts, *_ = copy(ask, many, WORDS)
    assert texts == ["Bob"] * MAX_TEXTS
    assert len(asked) == MAX_TEXTS


@pytest.mark.parametrize("brings_tools", [True, False])
def test_only_a_callers_own_tool_gets_parts(brings_tools: bool) -> None:
    """Lists, objects and branches are filled in the same order."""
    inner = {"type": "object", "properties": {"street": {"type": "string"}}, "required": ["street"]}
    parameters = {
        "type": "object",
        "properties": {
            "to": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
            "place": inner,
            "tags": {"type": "array", "items": {"type": "string"}, "minItems": 1},
        },
        "required": ["to", "place", "tags"],
    }
    tool = {"type": "function", "function": {"name": "mail", "parameters": parameters}}
    body: dict[str, Any] = {"model": "demo", "messages": [{"role": "user", "content": WORDS}]}
    request = parse_chat_request(json.dumps({**body, "tools": [tool]} if brings_tools else body).encode())
    offered = offer_function(FunctionDefinition(name="mail", parameters=parameters))
    choice = read_tool_choice(request, {"mail": offered})
    conversation = Conversation((ChatTurn("user", WORDS),))
    ask, asked = weighing(to={"Bob": 1.0}, street={"late": 1.0}, tags={"mail": 1.0})
    usage = Usage.of(5, 2, 3)
    answer = asyncio.run(call_with_texts(ask, request, choice, [("mail", 1.0)], conversation, usage))
    [call] = answer.choices[0].message.tool_calls or []
    values = json.loads(call.function.arguments)
    if brings_tools:
        assert values == {"to": "Bob", "place": {"street": "late"}, "tags": ["mail"]}
        assert answer.usage == Usage.of(35, 2, 15)
        none = asyncio.run(call_with_texts(ask, request, choice, [(UNKNOWN_TOOL_ID, 1.0)], conversation, usage))
        assert none.choices[0].message.tool_calls is None
        assert len(asked) == 3
    else:
        assert values == {"to": WORDS, "place": {"street": WORDS}, "tags": [WORDS]}
        assert (answer.usage, asked) == (usage, [])
