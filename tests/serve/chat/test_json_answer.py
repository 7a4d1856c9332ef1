"""Answers in JSON: asked for as OpenAI's clients do, or refused by name."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from stand_in_service import CATALOG, Method, World

from data_pipeline.errors import InputError
from data_pipeline.records.catalog import Tool
from model.decode.json_text import WrittenJson
from serve.chat.content import ChatTurn, Conversation
from serve.chat.events import await_completion
from serve.chat.json_answer import answer_in_json, check_format
from serve.chat.schemas import ChatCompletion, ChatRequest, parse_chat_request
from serve.chat.served_models import ServedModels
from serve.engine.messages import JsonQuery, Ranking, ServedModel
from serve.http.schemas import RequestError

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WANTED = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA, "strict": True}}


def request_with(response_format: Any, **fields: Any) -> ChatRequest:
    body = {"model": "demo", "messages": [{"role": "user", "content": "Rain in Rome?"}], **fields}
    return parse_chat_request(json.dumps({**body, "response_format": response_format}).encode())


def answer(request: ChatRequest, asked: list[JsonQuery], *, is_whole: bool = True) -> ChatCompletion:
    async def write(query: JsonQuery) -> AsyncGenerator[str | WrittenJson, None]:
        asked.append(query)
        if "Text: never" in query.prompt:
            raise InputError("the words are too long for this model")
        yield WrittenJson('{"city": "Rome"}', is_whole, 30, 20, 7)

    words = request.messages[-1].content
    assert isinstance(words, str)
    conversation = Conversation((ChatTurn("user", words),))
    return asyncio.run(await_completion(answer_in_json(write, request, conversation, max_chars=40, max_tokens=99)))


def test_words_and_schema_are_what_the_model_reads() -> None:
    asked: list[JsonQuery] = []
    answered = answer(request_with(WANTED, max_tokens=9), asked)
    (choice,) = answered.choices
    assert (choice.message.content, choice.finish_reason) == ('{"city": "Rome"}', "stop")
    assert (answered.usage.prompt_tokens, answered.usage.prompt_tokens_details.cached_tokens) == (30, 20)
    assert asked[0].prompt.endswith(f"Text: Rain in Rome?\nSchema: {json.dumps(SCHEMA)}\nJSON: ")
    assert asked[0].max_tokens == 9
    (choice,) = answer(request_with({"type": "json_object"}, max_tokens=1000), asked, is_whole=False).choices
    assert choice.finish_reason == "length"
    assert asked[1].max_tokens == 99, "of the service"
    assert asked[1].grammar != asked[0].grammar


def test_the_choice_before_it_is_counted() -> None:
    world = World()
    predictor: Any = world.predictor
    predictor.select = Method(
        lambda _: [Ranking([(Tool("unknown"), 0.9)], "rev", n_prompt_tokens=100, n_answer_tokens=3)]
    )
    model = ServedModel("toolmm", CATALOG, "rev", finds_cards=True)
    world.chat.models = world.chat.selector.models = ServedModels([model], predictor)
    tools = [{"type": "function", "function": {"name": "mend"}}]
    body = {"model": "toolmm", "messages": [{"role": "user", "content": "Rain in Rome?"}], "tools": tools}
    answered = world.client.post("/v1/chat/completions", json={**body, "response_format": WANTED}).json()
    assert answered["choices"][0]["message"]["content"] == "{}"
    usage = answered["usage"]  # the stand-in reads 20 tokens, of which it had read 5, and writes 9
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (120, 12)
    assert usage["prompt_tokens_details"]["cached_tokens"] == 5


def test_it_comes_as_it_is_written() -> None:
    world = World()
    world.predictor.json = '{"city": "Rome", "days": [1, 2]}'
    body = {"model": "toolmm", "messages": [{"role": "user", "content": "Rain in Rome?"}], "stream": True}
    for stop, expected in (
        (None, ['{"city":', ' "Rome",', ' "days":', " [1,", " 2]}"]),
        ("[", ['{"city":', ' "Rome",', ' "days":', " "]),
    ):
        said = world.client.post("/v1/chat/completions", json={**body, "response_format": WANTED, "stop": stop}).text
        chunks = [json.loads(line[6:]) for line in said.splitlines() if line.startswith("data: {")]
        deltas = [chunk["choices"][0]["delta"].get("content") for chunk in chunks]
        assert [delta for delta in deltas if delta] == expected
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    # what is at fault is known before the first word
    refused = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing"}}}
    answered = world.client.post("/v1/chat/completions", json={**body, "response_format": refused})
    assert (answered.status_code, answered.json()["error"]["code"]) == (400, "bad_schema")


def test_what_is_at_fault_is_named() -> None:
    for request, code, param in (
        (
            request_with({**WANTED, "json_schema": {"name": "x", "schema": {"type": "nothing"}}}),
            "bad_schema",
            "response_format",
        ),
        (request_with(WANTED, messages=[{"role": "user", "content": "never"}]), "bad_schema", "response_format"),
        (
            request_with(WANTED, messages=[{"role": "user", "content": "a" * 41}]),
            "instruction_too_long",
            "messages.0.content",
        ),
    ):
        with pytest.raises(RequestError) as refused:
            answer(request, [])
        assert refused.value.param == param
        assert refused.value.code == code
    check_format(request_with({"type": "text"}, model="demo-agent"))
    with pytest.raises(RequestError, match="ask 'demo' for JSON"):
        check_format(request_with(WANTED, model="demo-agent"))
    long = {"name": "x", "schema": {"description": "a" * 100_001}}
    with pytest.raises(RequestError) as refused:
        check_format(request_with({**WANTED, "json_schema": long}))
    assert refused.value.status == 413
