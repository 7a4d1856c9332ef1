"""OpenAI's own client, unmodified: what it raises at a service that demands keys, how it reads a slow stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from stand_in_service import World, serve

from serve.chat import routes
from serve.chat.schemas import ChatCompletion, ChatRequest
from serve.http.access import KEYS_VARIABLE

KEY = "a-key-of-the-tests"


def test_keys_and_rates_are_told_as_openai_tells_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEYS_VARIABLE, f"tester:{KEY}")
    with serve(World(requests_per_minute=2)) as url:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="another-key-of-the-tests", max_retries=0) as stranger:
            with pytest.raises(openai.AuthenticationError) as refused:
                stranger.models.list()
            assert refused.value.code == "invalid_api_key"
        with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as client:
            for _ in range(2):
                assert next(model.id for model in client.models.list()) == "toolmm"
            with pytest.raises(openai.RateLimitError) as limited:
                client.chat.completions.create(model="toolmm", messages=[{"role": "user", "content": "hello"}])
            assert limited.value.code == "rate_limit_exceeded"
            assert int(limited.value.response.headers["retry-after"]) > 0


def test_a_stream_with_comments_between_its_events_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    complete = world.chat.complete

    async def complete_slowly(request: ChatRequest, caller: str) -> AsyncIterator[str]:
        answer = await complete(request, caller)
        assert not isinstance(answer, ChatCompletion)
        return slowly(answer)

    async def slowly(events: AsyncIterator[str]) -> AsyncIterator[str]:
        async for event in events:
            await asyncio.sleep(0.05)
            yield event

    monkeypatch.setattr(world.chat, "complete", complete_slowly)
    monkeypatch.setattr(routes.EventSourceResponse, "DEFAULT_PING_INTERVAL", 0.02)
    with serve(world) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none on loopback", max_retries=0) as client:
        stream = client.chat.completions.create(
            model="toolmm", messages=[{"role": "user", "content": "hello"}], stream=True
        )
        choices = [chunk.choices[0] for chunk in stream]
    assert choices[-1].finish_reason == "tool_calls"
    calls = [call for choice in choices for call in choice.delta.tool_calls or ()]
    assert calls[0].function is not None
    assert calls[0].function.name == "deblur"


def test_a_model_is_found_by_its_id() -> None:
    with (
        serve(World()) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none on loopback", max_retries=0) as client,
    ):
        for model_id in ("toolmm", "toolmm-agent"):
            found = client.models.retrieve(model_id)
            assert (found.id, found.object) == (model_id, "model")
        for model_id in ("lab/other", "toolmm/agent", "toolmm-agent-agent"):
            with pytest.raises(openai.NotFoundError) as missing:
                client.models.retrieve(model_id)
            assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
            assert repr(model_id) in missing.value.message


def test_what_a_client_may_send_is_met_or_refused_by_its_name() -> None:
    world = World()
    hello: list[Any] = [{"role": "user", "content": "hello"}]
    with serve(world) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none on loopback", max_retries=0) as client:

        def ask(**fields: Any) -> Any:
            return client.chat.completions.create(**{"model": "toolmm", "messages": hello, **fields})

        (choice,) = ask(n=1, seed=3, stop=["x"], temperature=0.3, parallel_tool_calls=False, max_tokens=9).choices
        assert choice.message.tool_calls[0].function.name == "deblur"
        function = {"type": "function", "function": {"name": "dehaze"}}
        allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [function]}}
        world.predictor.ranking = [("dehaze", 1.0)]
        (choice,) = ask(tool_choice=allowed).choices
        assert choice.message.tool_calls[0].function.name == "dehaze"
        assert [tool.tool_id for tool in world.predictor.asked[-1].tools or ()] == ["dehaze"]
        for fields, param in (
            ({"n": 2}, "n"),
            ({"response_format": {"type": "xml"}}, "response_format"),
            ({"stop": [1]}, "stop.0"),
            (
                {"messages": [*hello, {"role": "user", "content": [{"type": "file", "file": {}}]}]},
                "messages.1.content.0",
            ),
            ({"messages": [{"role": "user", "content": "a" * 51}]}, "messages.0.content"),
        ):
            with pytest.raises(openai.APIStatusError) as refused:
                ask(**fields)
            assert (refused.value.status_code, refused.value.param) in ((400, param), (413, param))
            assert refused.value.request_id
