"""The Responses API over real HTTP, through OpenAI's own client, as it parses answers and streams."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from small_service import CATALOG, Service, picture, sound

pytestmark = [pytest.mark.ray, pytest.mark.slow]

USER = "Show the edges of this picture"
FUNCTIONS: list[Any] = [
    {
        "type": "function",
        "name": name,
        "description": f"Does {name}.",
        "strict": False,
        "parameters": {
            "type": "object",
            "properties": {"image": {"type": "string"}, "text": {"type": "string"}},
            "required": ["image", "text"],
        },
    }
    for name in ("repaint", "enlarge")
]


@pytest.fixture
def client(service: Service) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="no-key-on-loopback", max_retries=0) as client:
        yield client


def user(text: str, data: bytes | None = None) -> Any:
    parts: list[dict[str, Any]] = [{"type": "input_text", "text": text}]
    if data is not None:
        url = "data:image/png;base64," + base64.b64encode(data).decode()
        parts.append({"type": "input_image", "image_url": url, "detail": "auto"})
    return {"role": "user", "content": parts}


def test_a_tool_is_chosen_as_in_a_chat(client: openai.OpenAI, service: Service) -> None:
    data = picture()
    answer = client.responses.create(model="toolmm", input=[user(USER, data)], tool_choice="required")
    expected = service.expected(USER, "image", data)
    [call] = answer.output
    assert call.type == "function_call"
    best = max((tool for tool in expected if tool != "unknown"), key=lambda tool: expected[tool])
    assert call.name == best.replace("/", "__")
    assert httpx.get(f"{service.url}/v1/artifacts/{json.loads(call.arguments)['image']}").content == data
    assert answer.status == "completed"
    assert answer.usage.input_tokens > 10
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    heard = {"type": "input_audio", "input_audio": {"data": base64.b64encode(sound()).decode(), "format": "wav"}}
    answer = client.responses.create(
        model="toolmm", input=[{"role": "user", "content": [{"type": "input_text", "text": "Clean it"}, heard]}],
        tool_choice="required", top_logprobs=3,
    )  # fmt: skip
    expected = service.expected("Clean it", "audio", sound())
    [call] = answer.output
    tops = call.model_extra["logprobs"][0]["top_logprobs"]
    assert [top["token"] for top in tops] == sorted(expected, key=lambda tool: -expected[tool])[:3]


def test_a_dialogue_with_functions_goes_on_from_its_responses(client: openai.OpenAI, service: Service) -> None:
    first = client.responses.create(
        model="toolmm",
        instructions="Be kind.",
        input=[user("Enlarge it", picture())],
        tools=FUNCTIONS,
        tool_choice={"type": "function", "name": "enlarge"},
    )
    [call] = first.output
    assert call.name == "enlarge"
    assert json.loads(call.arguments)["text"] in ("Enlarge it", "Enlarge", "it"), "a part of the words"
    output: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "It is large."}
    second = client.responses.create(
        model="toolmm", previous_response_id=first.id, input=[output], tools=FUNCTIONS, tool_choice="none"
    )
    assert second.previous_response_id == first.id
    assert second.output_text == "enlarge: It is large."
    # the same without the service's memory: a client that sends everything
    whole = client.responses.create(
        model="toolmm",
        input=[user("Enlarge it", picture()), call.model_dump(exclude_unset=True, exclude={"logprobs"}), output],
        tools=FUNCTIONS,
        tool_choice="none",
        store=False,
    )
    assert whole.output_text == second.output_text
    assert client.responses.retrieve(second.id).output_text == second.output_text
    client.responses.delete(second.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(second.id)
    for missing in (second.id, whole.id):
        with pytest.raises(openai.BadRequestError) as raised:
            client.responses.create(model="toolmm", previous_response_id=missing, input="Again")
        assert (raised.value.code, raised.value.param) == ("previous_response_not_found", "previous_response_id")


def test_streams_are_parsed_by_the_client(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "toolmm",
        "input": [user("Enlarge it", picture())],
        "tools": FUNCTIONS,
        "tool_choice": "required",
    }
    whole = client.responses.create(**asked)
    with client.responses.stream(**asked) as stream:
        events = list(stream)
        final = stream.get_final_response()
    [call], [expected] = final.output, whole.output
    assert (call.name, call.arguments) == (expected.name, expected.arguments)
    snapshots = [event.snapshot for event in events if event.type == "response.function_call_arguments.delta"]
    assert snapshots[-1] == expected.arguments
    assert final.usage is not None
    assert whole.usage is not None
    assert final.usage.model_copy(update={"input_tokens_details": None}) == whole.usage.model_copy(
        update={"input_tokens_details": None}
    )  # the second time some tokens need not be read
    answered = client.responses.create(
        model="toolmm",
        previous_response_id=final.id,
        input=[{"type": "function_call_output", "call_id": call.call_id, "output": "one two three four five six"}],
        tool_choice="none",
        stream=True,
    )
    text, last = "", None
    for event in answered:
        if event.type == "response.output_text.delta":
            text += event.delta
        last = event
    assert last is not None
    assert last.type == "response.completed"
    assert last.response.output_text == text == f"{call.name}: one two three four five six"


def test_the_agents_loop_is_a_response(client: openai.OpenAI, service: Service) -> None:
    asked: dict[str, Any] = {
        "model": "toolmm-agent",
        "input": [user(USER, picture())],
        "tool_choice": "required",
        "timeout": 120,
    }
    answer = client.responses.create(**asked)
    steps = answer.model_extra["agent"]["steps"]
    assert steps
    assert all(step["tool_id"] in CATALOG for step in steps)
    assert answer.output_text
    with client.responses.stream(**asked) as stream:
        told = [
            event.response.model_extra["agent"]["step"]["tool_id"]
            for event in stream
            if event.type == "response.in_progress" and event.response.model_extra.get("agent")
        ]
    assert told == [step["tool_id"] for step in steps]


def test_what_is_not_supported_is_refused_by_its_name(client: openai.OpenAI) -> None:
    for fields, param in (
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort"),
        ({"input": [user("a"), {"type": "item_reference", "id": "msg_1"}]}, "input.1"),
        ({"input": [user("a"), user("b", b"no picture")]}, "input.1.content.1.image_url"),
    ):
        with pytest.raises(openai.APIStatusError) as raised:
            client.responses.create(**{"model": "toolmm", "input": "a", **fields})
        assert raised.value.param == param
        assert raised.value.status_code in (400, 415)
    with pytest.raises(openai.NotFoundError) as missing:
        client.responses.create(model="other", input="a", stream=True)
    assert missing.value.code == "model_not_found"
