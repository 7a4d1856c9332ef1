"""OpenAI's own client, unmodified: what it raises at a service that demands keys, how it reads a slow stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

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

    async def complete_slowly(request: ChatRequest) -> AsyncIterator[str]:
        answer = await complete(request)
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
