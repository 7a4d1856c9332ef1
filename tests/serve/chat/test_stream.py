"""Answers satisfy the official client's own types, whole and streamed."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from data_pipeline.records.catalog import Tool
from serve.agent.events import AgentResult, AgentStep, AnswerText
from serve.artifacts import Artifact
from serve.chat.content import ChatTurn, Conversation, PastCall
from serve.chat.events import SentWords
from serve.chat.schemas import ChatCompletion, Usage, parse_chat_request
from serve.chat.stream import (
    DONE,
    ChunkWriter,
    answer_with_tool,
    answer_with_words,
    complete_agent,
    describe_tool_results,
    stream_answer,
    stream_completion,
)
from serve.chat.tools import offer_entry, read_tool_choice

RANKING = [("unknown", 0.6), ("lab/edges", 0.3), ("lab/blur", 0.1), ("lab/never", 0.0)]
CATALOG = {name: offer_entry(Tool(name, input_modality="image")) for name, _ in RANKING[1:]}
PICTURE = Artifact("0" * 32, "image/png", "image", 1, "", 0, 1)
USAGE = Usage.of(11, 4)


def answer(ranking: list[tuple[str, float]] = RANKING, **fields: Any) -> ChatCompletion:
    body = {"model": "demo", "messages": [{"role": "user", "content": "find edges"}], **fields}
    request = parse_chat_request(json.dumps(body).encode())
    return answer_with_tool(request, read_tool_choice(request, CATALOG), ranking, "find edges", [PICTURE], USAGE)


def chunks_of(events: list[str]) -> list[dict[str, Any]]:
    assert events[-1] == DONE
    assert not any("\n" in event or "\r" in event for event in events)
    return [json.loads(event) for event in events[:-1]]


def test_a_call_follows_the_ranking_and_the_choice() -> None:
    declined = answer().choices[0]
    assert (declined.finish_reason, declined.message.tool_calls) == ("stop", None)
    assert declined.message.content
    for fields, name in (
        ({"tool_choice": "required"}, "lab/edges"),
        ({"tool_choice": {"type": "function", "function": {"name": "lab/blur"}}}, "lab/blur"),
        ({"ranking": RANKING[1:]}, "lab/edges"),
    ):
        choice = answer(**fields).choices[0]
        assert choice.finish_reason == "tool_calls"
        (call,) = choice.message.tool_calls or []
        assert (call.function.name, json.loads(call.function.arguments)) == (name, {"image": PICTURE.id})


def test_words_end_before_the_first_text_to_stop_at() -> None:
    for stop, text in (
        (None, "one, two. three"),
        (".", "one, two"),
        (["!", " th", ","], "one"),
        ("o", ""),
        ("x", None),
    ):
        body = {"model": "demo", "messages": [{"role": "user", "content": "hi"}], "stop": stop}
        request = parse_chat_request(json.dumps(body).encode())
        (choice,) = answer_with_words(request, "one, two. three", USAGE, "length").choices
        assert choice.message.content == ("one, two. three" if text is None else text)
        assert choice.finish_reason == ("length" if stop in (None, "x") else "stop")
    assert answer(stop="tools").choices[0].message.content == "None of the "


def test_logprobs_show_the_ranking() -> None:
    assert answer().choices[0].logprobs is None
    logprobs = answer(logprobs=True, top_logprobs=4, tool_choice="required").choices[0].logprobs
    assert logprobs is not None
    (chosen,) = logprobs.content
    assert (chosen.token, chosen.logprob, bytes(chosen.bytes)) == ("lab/edges", math.log(0.3), b"lab/edges")
    assert [(top.token, top.logprob) for top in chosen.top_logprobs] == [
        (name, math.log(p) if p else -9999.0) for name, p in RANKING
    ]


def test_whole_answers_satisfy_the_official_client() -> None:
    chat = pytest.importorskip("openai.types.chat")
    request = parse_chat_request(b'{"model": "demo", "messages": [{"role": "user", "content": "hi"}]}')
    for ours in (
        answer(),
        answer(tool_choice="required", logprobs=True, top_logprobs=2),
        answer_with_words(request, "hi", USAGE, "length", {"steps": []}),
    ):
        theirs = chat.ChatCompletion.model_validate(ours.to_json(), strict=True)
        assert theirs.usage.total_tokens == 15
        assert theirs.choices[0].finish_reason == ours.choices[0].finish_reason
        assert ("tool_calls" in ours.to_json()["choices"][0]["message"]) == (
            theirs.choices[0].finish_reason == "tool_calls"
        )


@pytest.mark.parametrize("has_usage", [False, True])
def test_streamed_answers_add_up(has_usage: bool) -> None:
    for whole in (answer(logprobs=True), answer(tool_choice="required", logprobs=True, top_logprobs=2)):
        chunks = chunks_of(list(stream_completion(whole, has_usage)))
        assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
        assert all(chunk["id"] == whole.id and chunk["object"] == "chat.completion.chunk" for chunk in chunks)
        if has_usage:
            last = chunks.pop()
            assert (last["choices"], last["usage"]) == ([], USAGE.model_dump())
            assert all(chunk["usage"] is None for chunk in chunks)
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
        calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
        message = whole.choices[0].message
        assert "".join(delta.get("content") or "" for delta in deltas) == (message.content or "")
        if message.tool_calls:
            expected = message.tool_calls[0]
            assert "".join(call["function"]["arguments"] for call in calls) == expected.function.arguments
            assert (calls[0]["id"], calls[0]["function"]["name"]) == (expected.id, expected.function.name)
        reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
        assert reasons == [None] * (len(chunks) - 1) + [whole.choices[0].finish_reason]
        assert sum(chunk["choices"][0]["logprobs"] is not None for chunk in chunks) == 1


def test_chunks_satisfy_the_official_client() -> None:
    chat = pytest.importorskip("openai.types.chat")
    request = parse_chat_request(b'{"model": "demo", "messages": [{"role": "user", "content": "hi"}], "stream": true}')
    writer = ChunkWriter.start(request)
    words = answer_with_words(request, " two  words\nand\tmore words here ", USAGE, agent_trace={"steps": [1]})
    for events in (
        list(stream_completion(answer(tool_choice="required", logprobs=True), True)),
        [writer.begin(), writer.agent_step({"tool_id": "lab/blur"}), *writer.finish(words)],
    ):
        for chunk in chunks_of(events):
            chat.ChatCompletionChunk.model_validate(chunk, strict=True)
    assert chunks_of(events)[1]["agent"] == {"step": {"tool_id": "lab/blur"}}
    assert chunks_of(events)[-1]["agent"] == {"steps": [1]}


def test_the_agents_steps_stream_before_its_answer() -> None:
    request = parse_chat_request(b'{"model": "demo", "messages": [{"role": "user", "content": "hi"}], "stream": true}')

    async def events() -> AsyncGenerator[AnswerText | AgentStep | AgentResult, None]:
        step = AgentStep("Thought: Yes", "Blur It", "lab/blur", {"image": PICTURE.id}, "image/x.png")
        yield step
        yield AgentResult("Done.", (step,), "steps", 7, 5)

    async def collect() -> list[str]:
        return [event async for event in stream_answer(request, complete_agent(request, events()))]

    chunks = chunks_of(asyncio.run(collect()))
    assert [chunk.get("agent", {}).get("step", {}).get("tool_id") for chunk in chunks[:2]] == [None, "lab/blur"]
    assert chunks[2]["choices"][0]["delta"] == {"content": "Done."}
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert chunks[-1]["agent"]["stopped"] == "steps"


def test_words_go_out_as_they_come_but_none_of_what_it_stops_at() -> None:
    whole, lengths = "one two, threefold", (0, 3, 2, 8, 14, 16, 18)
    for stops, pieces in (
        ((), ["", "one", "", " two,", " three", "fo", "ld"]),
        (("two, x", "fold"), ["", "one", "", " ", "two, three", "", ""]),
    ):
        sent = SentWords(stops)
        assert [sent.grow(whole[:n]) for n in lengths] == pieces, "a model that is asked again begins anew"
        assert sent.finish("".join(pieces) + "?") == "?"
    with pytest.raises(RuntimeError, match="written anew"):
        sent.finish("one, two")


def test_tool_results_end_a_chat_in_words() -> None:
    turns = (
        ChatTurn("user", "a"),
        ChatTurn("assistant", "", calls=(PastCall("c1", "lab/count", "{}"), PastCall("c2", "lab/blur", "{}"))),
        ChatTurn("tool", "three dogs", call_id="c1"),
        ChatTurn("tool", " ", call_id="c2"),
    )
    assert describe_tool_results(Conversation(turns)) == "lab/count: three dogs\nlab/blur: done, without a word"
