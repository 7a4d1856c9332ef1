"""Chats, tools and artifacts over real HTTP, through OpenAI's own client."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image
from small_service import CATALOG, Service, assert_error, picture, sound, video

pytestmark = [pytest.mark.ray, pytest.mark.slow]

EDGES = "local/detect-edges"
USER = "Show the edges of this picture"


@pytest.fixture
def client(service: Service) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="no-key-on-loopback", max_retries=0) as client:
        yield client


def user_message(text: str, data: bytes | None = None) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}]
    if data is not None:
        url = "data:image/png;base64," + base64.b64encode(data).decode()
        parts.append({"type": "image_url", "image_url": {"url": url}})
    return {"role": "user", "content": parts}


def test_models_are_listed(client: openai.OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert names == ["toolmm", "toolmm-agent", "second-1.0", "second-1.0-agent"]


def test_a_tool_is_chosen_as_the_model_ranks_it(client: openai.OpenAI, service: Service) -> None:
    data = picture()
    answer = client.chat.completions.create(
        model="toolmm", messages=[user_message(USER, data)], logprobs=True, top_logprobs=3, tool_choice="required"
    )
    expected = service.expected(USER, "image", data)
    best = max((tool for tool in expected if tool != "unknown"), key=lambda tool: expected[tool])
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    [call] = choice.message.tool_calls
    assert call.function.name == best.replace("/", "__")
    [token] = choice.logprobs.content
    assert token.token == best
    assert np.exp(token.logprob) == pytest.approx(expected[best], rel=1e-3)
    assert [np.exp(top.logprob) for top in token.top_logprobs] == pytest.approx(
        sorted(expected.values(), reverse=True)[:3], rel=1e-3
    )
    assert answer.usage.prompt_tokens > 10
    arguments = json.loads(call.function.arguments)
    assert httpx.get(f"{service.url}/v1/artifacts/{arguments['image']}").content == data


def test_a_stream_says_the_same(client: openai.OpenAI) -> None:
    messages = [user_message(USER, picture())]
    whole = client.chat.completions.create(model="toolmm", messages=messages, tool_choice="required")
    chunks = list(
        client.chat.completions.create(
            model="toolmm",
            messages=messages,
            tool_choice="required",
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    calls = [
        chunk.choices[0].delta.tool_calls[0] for chunk in chunks if chunk.choices and chunk.choices[0].delta.tool_calls
    ]
    [expected] = whole.choices[0].message.tool_calls
    assert calls[0].function.name == expected.function.name
    assert "".join(call.function.arguments or "" for call in calls) == expected.function.arguments
    assert chunks[-1].usage == whole.usage


def test_a_callers_own_tools_are_ranked(client: openai.OpenAI) -> None:
    tools = [
        {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {
            "image": {"type": "string"}, "text": {"type": "string"}}, "required": ["image", "text"]}}}
        for name in ("repaint", "enlarge")
    ]  # fmt: skip
    answer = client.chat.completions.create(
        model="toolmm", messages=[user_message("Enlarge it", picture())], tools=tools, tool_choice="required"
    )
    [call] = answer.choices[0].message.tool_calls
    assert call.function.name in ("repaint", "enlarge")
    assert json.loads(call.function.arguments)["text"] in ("Enlarge it", "Enlarge", "it"), "a part of the words"
    named = {"type": "function", "function": {"name": "enlarge"}}
    answer = client.chat.completions.create(
        model="toolmm", messages=[user_message("Enlarge it", picture())], tools=tools, tool_choice=named
    )
    assert answer.choices[0].message.tool_calls[0].function.name == "enlarge"


def test_a_chosen_tool_runs_and_its_result_ends_the_chat(client: openai.OpenAI, service: Service) -> None:
    data = picture(size=(48, 64))
    first = user_message(USER, data)
    choice = {"type": "function", "function": {"name": EDGES}}
    answer = client.chat.completions.create(model="toolmm", messages=[first], tool_choice=choice)
    message = answer.choices[0].message
    [call] = message.tool_calls
    assert call.function.name == "local__detect-edges", "OpenAI's functions have no slash"
    named = {"type": "function", "function": {"name": call.function.name}}
    again = client.chat.completions.create(model="toolmm", messages=[first], tool_choice=named)
    assert again.choices[0].message.tool_calls[0].function.name == call.function.name
    invoked = httpx.post(
        f"{service.url}/v1/tools/{call.function.name}/invoke",
        json={"arguments": json.loads(call.function.arguments)},
        timeout=120,
    )
    assert invoked.status_code == 200, invoked.text
    artifact = invoked.json()["artifact"]
    found = httpx.get(service.url + artifact["path"])
    assert found.headers["content-type"] == "image/png"
    assert found.headers["x-content-type-options"] == "nosniff"
    assert Image.open(io.BytesIO(found.content)).size == (64, 48)
    result = {"role": "tool", "tool_call_id": call.id, "content": f"artifact:{artifact['id']}"}
    answer = client.chat.completions.create(model="toolmm", messages=[first, message.model_dump(), result])
    assert artifact["id"] in answer.choices[0].message.content


def test_the_agent_calls_tools_that_exist_on_files_that_exist(client: openai.OpenAI, service: Service) -> None:
    answer = client.chat.completions.create(
        model="toolmm-agent", messages=[user_message(USER, picture())], tool_choice="required", timeout=120
    )
    trace = answer.model_extra["agent"]
    assert trace["steps"]
    for step in trace["steps"]:
        assert step["tool_id"] in CATALOG
        assert step["error"] is None, step
        assert httpx.get(service.url + step["artifact"]["path"]).status_code == 200
    assert answer.choices[0].message.content
    assert answer.usage.completion_tokens > 0


def test_the_agents_steps_stream(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="toolmm-agent",
            messages=[user_message(USER, picture())],
            tool_choice="required",
            stream=True,
            timeout=120,
        )
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert any("agent" in (chunk.model_extra or {}) for chunk in chunks)


def test_faults_are_told_in_openais_form(client: openai.OpenAI, service: Service) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        client.chat.completions.create(model="other", messages=[user_message("hello")])
    assert raised.value.code == "model_not_found"
    message = user_message("look")
    message["content"].append({"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}})
    with pytest.raises(openai.BadRequestError) as raised_bad:
        client.chat.completions.create(model="toolmm", messages=[message])
    assert raised_bad.value.code == "url_not_allowed"
    assert_error(httpx.get(f"{service.url}/v1/artifacts/../../etc/passwd"), 404, "not_found")
    assert_error(httpx.get(f"{service.url}/v1/artifacts/{'0' * 32}"), 404, "artifact_not_found")
    assert_error(httpx.post(f"{service.url}/v1/tools/no/such/invoke", json={"arguments": {}}), 404, "tool_not_found")
    wrong = httpx.post(f"{service.url}/v1/tools/{EDGES}/invoke", json={"arguments": {"image": "0" * 32}}, timeout=60)
    assert_error(wrong, 422, "bad_media")
    assert_error(httpx.get(f"{service.url}/v1/tools", headers={"Host": "example.org"}), 401, "invalid_api_key")


def test_an_upload_comes_back_as_it_was(service: Service) -> None:
    data = picture(3)
    answer = httpx.post(f"{service.url}/v1/artifacts", files={"file": ("a b.png", data, "image/png")})
    assert answer.status_code == 200, answer.text
    found = httpx.get(service.url + answer.json()["path"])
    assert found.content == data
    assert found.headers["content-type"] == "image/png"
    text = httpx.post(f"{service.url}/v1/artifacts", files={"file": ("a.html", b"<script>", "image/png")})
    assert_error(text, 415, "unsupported_media")


def test_every_answer_bears_one_id_whoever_made_it(client: openai.OpenAI, service: Service) -> None:
    """Ray Serve's servers put one in too."""
    for method, path, status in (
        ("GET", "/v1/models", 200),
        ("HEAD", "/v1/models", 200),
        ("OPTIONS", "/v1/chat/completions", 204),
        ("POST", "/v1/chat/completions", 415),
        ("GET", "/v1/nowhere", 404),
    ):
        for sent in ({}, {"X-Request-ID": "mine-1"}):
            answer = httpx.request(method, service.url + path, headers=sent)
            assert answer.status_code == status
            (found,) = answer.headers.get_list("x-request-id")
            assert found == sent.get("X-Request-ID", found)
            assert len(found) > 5
    assert client.models.retrieve("second-1.0-agent").id == "second-1.0-agent"
    with pytest.raises(openai.NotFoundError) as raised:
        client.models.retrieve("lab/other")
    assert (raised.value.code, raised.value.param) == ("model_not_found", "model")
    assert raised.value.request_id == raised.value.response.headers["x-request-id"]


def test_head_and_get_agree(service: Service) -> None:
    artifact = httpx.post(f"{service.url}/v1/artifacts", files={"file": ("a.png", picture(5))}).json()
    for path in ("/", "/healthz", "/v1/tools", artifact["path"]):
        whole, head = httpx.get(service.url + path), httpx.head(service.url + path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == whole.headers["content-length"]


@pytest.mark.parametrize(
    "names",
    [
        ("get", "get_weather", "get_weather_now"),
        ("get-weather", "-get", "_get", "__"),
        ("getWeather", "GETWEATHER", "getweather"),
        ("7", "77", "a" * 64),
        ("functions.get", "mcp__server__get", "lab/get:v2", "grüße"),
    ],
)
def test_functions_have_any_name_that_clients_give(client: openai.OpenAI, names: tuple[str, ...]) -> None:
    tools = [{"type": "function", "function": {"name": name, "description": f"Does {name}."}} for name in names]
    for choice in ("required", {"type": "function", "function": {"name": names[-1]}}):
        answer = client.chat.completions.create(
            model="toolmm",
            messages=[user_message("Get the weather")],
            tools=tools,
            tool_choice=choice,
            logprobs=True,
            top_logprobs=5,
        )
        [call] = answer.choices[0].message.tool_calls
        assert call.function.name in names
        if choice != "required":
            assert call.function.name == names[-1]


def test_some_of_the_tools_may_be_allowed(client: openai.OpenAI, service: Service) -> None:
    names = ["deblur", "dehaze"]
    functions = [{"type": "function", "function": {"name": name}} for name in names]
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": functions}}
    answer = client.chat.completions.create(
        model="toolmm",
        messages=[user_message(USER, picture())],
        tool_choice=allowed,
        logprobs=True,
        top_logprobs=7,
    )
    [token] = answer.choices[0].logprobs.content
    found = {top.token: np.exp(top.logprob) for top in token.top_logprobs}
    assert found == pytest.approx(service.expected(USER, "image", picture(), tool_ids=[*names, "unknown"]), rel=1e-3)
    assert answer.choices[0].message.tool_calls[0].function.name == max(names, key=lambda name: found[name])


def test_a_picture_may_come_alone_and_in_lines(client: openai.OpenAI, service: Service) -> None:
    data = picture(6)
    lines = base64.encodebytes(data).decode().replace("\n", "\r\n")
    alone = {"role": "user", "content": [{"type": "image_url", "image_url": f"data:image/png;base64,{lines}"}]}
    ask = {"role": "assistant", "content": [{"type": "refusal", "refusal": "Which picture?"}]}
    answer = client.chat.completions.create(
        model="toolmm",
        messages=[user_message(USER), ask, alone],
        tool_choice="required",
        logprobs=True,
    )
    expected = service.expected(USER, "image", data)
    [token] = answer.choices[0].logprobs.content
    assert np.exp(token.logprob) == pytest.approx(expected[token.token], rel=1e-3)
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(model="toolmm", messages=[alone])
    assert (raised.value.code, raised.value.param) == ("empty_instruction", "messages.0.content")


def test_questions_are_answered_as_the_model_ranks(client: openai.OpenAI, service: Service) -> None:
    for modality, data, part in (
        (None, b"", None),
        ("image", picture(), {"type": "input_image", "image_url": encode("image/png", picture())}),
        (
            "audio",
            sound(),
            {"type": "input_audio", "input_audio": {"data": encode("audio/wav", sound()), "format": "wav"}},
        ),
        ("video", video(), {"type": "input_video", "input_video": {"data": encode("video/mp4", video())}}),
    ):
        parts = [{"type": "input_text", "text": USER}, *([part] if part else [])]
        options = [{"value": "sharpen", "description": "Makes it sharper."}, {"value": "remove haze"}, {"value": True}]
        decision = client.decisions.create(
            model="toolmm",
            input=[{"role": "user", "content": parts}],
            questions=[
                {"type": "choice", "instructions": "", "name": "tool"},
                {"type": "choice", "instructions": "Which?", "choices": options},
            ],
        )
        catalog, own = decision.answers
        assert (catalog.type, catalog.name, own.name) == ("choice", "tool", None)
        found = {entry.value: entry.probability for entry in catalog.probabilities}
        medium = {"media": {"data": base64.b64encode(data).decode()}} if data else {}
        selected = service.post(json={"instruction": USER, "k": len(CATALOG), **medium}).json()
        assert found == pytest.approx({tool["tool_id"]: tool["probability"] for tool in selected["tools"]}, abs=1e-6)
        assert found == pytest.approx(service.expected(USER, modality, data), rel=1e-3)
        assert catalog.choice == selected["tools"][0]["tool_id"]
        ids = ["sharpen", "remove-haze", "true", "unknown"]
        expected = service.expected(f"Which?\n{USER}", modality, data, tool_ids=ids)
        assert own.model_extra["p_unknown"] == pytest.approx(expected["unknown"], rel=1e-3)
        assert [entry.value for entry in own.probabilities] == ["sharpen", "remove haze", True]
        assert [entry.probability for entry in own.probabilities] == pytest.approx(
            [expected[tool_id] / (1 - expected["unknown"]) for tool_id in ids[:3]], rel=1e-2
        )
        for answer in decision.answers:
            assert sum(entry.probability for entry in answer.probabilities) == pytest.approx(1, abs=1e-6)
        assert decision.usage.input_tokens > 20
    with pytest.raises(openai.BadRequestError) as raised:
        client.decisions.create(
            model="toolmm", input=USER, questions=[{"type": "predicate", "instructions": "It is blurred."}]
        )
    assert (raised.value.code, raised.value.param) == ("question_not_supported", "questions.0.type")


def encode(media_type: str, data: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"
