"""Chat requests: what OpenAI's clients send is read, what is wrong is named by its field."""

from __future__ import annotations

import json
from typing import Any

import pytest

from data_pipeline.records.catalog import Tool, ToolCatalog
from serve.chat.schemas import ChatRequest, list_models, parse_chat_request
from serve.engine.messages import ServedModel
from serve.http.schemas import RequestError

CATALOG = ToolCatalog([Tool("deblur", "Sharpens.")])

CALL = {"id": "c1", "type": "function", "function": {"name": "blur", "arguments": "{}"}}
HELLO = {"role": "user", "content": "hello"}


def parse(**fields: Any) -> ChatRequest:
    return parse_chat_request(json.dumps({"model": "demo", "messages": [HELLO], **fields}).encode())


def test_everything_that_clients_send_is_read() -> None:
    parts = [
        {"type": "text", "text": "look"},
        {"type": "image_url", "image_url": {"url": "artifact:0", "detail": "high"}},
        {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
        {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,"}},
        {"type": "input_video", "input_video": {"data": "", "format": "mp4"}},
    ]
    request = parse(
        messages=[
            {"role": "developer", "content": [{"type": "text", "text": "be kind"}]},
            {"role": "user", "content": parts, "name": "ada"},
            {"role": "assistant", "content": None, "tool_calls": [CALL], "refusal": None, "annotations": []},
            {"role": "tool", "content": "done", "tool_call_id": "c1"},
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "I cannot"}], "function_call": None},
            {"role": "assistant", "refusal": "I cannot"},
            {"role": "tool", "content": None, "tool_call_id": "c1"},
            {"role": "system", "content": None},
            {"role": "user", "content": [{"type": "image_url", "image_url": "artifact:0"}]},
        ],
        tools=[{"type": "function", "function": {"name": "blur", "parameters": {"type": "object"}, "strict": True}}],
        tool_choice={"type": "function", "function": {"name": "blur"}},
        stream=True,
        stream_options={"include_usage": True},
        logprobs=True,
        top_logprobs=5,
        temperature=0.2,
        seed=1,
        n=1,
        stop="\n",
        response_format={"type": "text"},
        parallel_tool_calls=True,
        modalities=["text"],
        max_completion_tokens=7,
    )
    assert len(request.messages) == 9
    assert request.has_usage_chunk
    assert request.max_answer_tokens == 7
    assert not request.is_agent


def test_the_agent_is_asked_for_by_flag_or_name() -> None:
    assert parse(agent=True).is_agent
    assert parse(model="demo-agent").is_agent
    assert not parse(model="demo-agent", agent=False).is_agent
    assert parse(model="demo-agent").base_model == parse().base_model == "demo"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": 3}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "wizard\n" * 999, "content": "x"}]}, "messages.0"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages.0.content"),
        ({"messages": [HELLO, {"role": "user", "content": [{"type": "spell"}]}]}, "messages.1.content.0"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "image_url.url"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.tool_call_id"),
        ({"messages": [{"role": "assistant", "tool_calls": [CALL] * 129}]}, "messages.0.tool_calls"),
        ({"n": 2}, "n"),
        ({"tools": []}, "tools"),
        ({"stream": "yes"}, "stream"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"functions": [{"name": "old"}]}, "functions"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 5}, "max_tokens"),
        ({"n": True}, "n"),
        ({"seed": "x"}, "seed"),
        ({"stop": 3}, "stop"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": ["a", ""]}, "stop.1"),
        ({"temperature": "hot"}, "temperature"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
        ),
        ({"parallel_tool_calls": 1}, "parallel_tool_calls"),
        ({"modalities": ["text", "audio"]}, "modalities.1"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"logit_bias": {"1": 1}}, "logit_bias"),
        ({"tool_choice": "any"}, "tool_choice"),
        ({"tool_choice": {"type": "custom"}}, "tool_choice"),
        ({"tool_choice": {"type": "function", "name": "x"}}, "tool_choice.function"),
        ({"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "none"}}}, "allowed_tools.mode"),
        ({"tool_choice": {"type": "allowed_tools", "tools": []}}, "tool_choice.allowed_tools"),
        ({"messages": [HELLO, 3]}, "messages.1"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": ["a"]}]}, "messages.0.content.0"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text"),
        ({"messages": [{"role": "user", "content": [{"type": "refusal", "refusal": "x"}]}]}, "messages.0.content.0"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": 3}]}]}, "content.0.image_url"),
        ({"messages": [{"role": "tool", "content": [{"type": "image_url"}], "tool_call_id": "c"}]}, "content.0"),
        ({"messages": [HELLO, {"role": "assistant", "function_call": {"name": "x"}}]}, "messages.1.function_call"),
        ({"messages": [HELLO, {"role": "assistant", "audio": {"id": "x"}}]}, "messages.1.audio"),
    ],
)
def test_faults_name_the_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse(**fields)
    assert caught.value.status == 400
    assert caught.value.code == "bad_field"
    assert (caught.value.param or "").endswith(param), caught.value.param
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 500
    for word in ("literal[", "Input", "tag", "discriminator", "validation", "<"):
        assert word not in caught.value.message + (caught.value.param or "")


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"3", b"\xff\xfe", b'{"model": "\\ud800"}', b'{"messages":' + b"[" * 100_000]
)
def test_what_is_no_request_is_refused(body: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        parse_chat_request(body)
    assert caught.value.status == 400


def test_errors_and_models_have_openais_form() -> None:
    pytest.importorskip("openai")
    from openai.types import Model

    models = [ServedModel("demo", CATALOG, "1"), ServedModel("chooser", CATALOG, "1", writes_dialogues=False)]
    listed = [Model.model_validate(entry).id for entry in list_models(models, 5).model_dump()["data"]]
    assert listed == ["demo", "demo-agent", "chooser"]
