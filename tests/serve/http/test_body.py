"""The limits of a request's body. What is in it: tests/serve/deployments/test_http.py."""

from __future__ import annotations

import asyncio

import pytest
from starlette.types import Message, Receive, Scope, Send

from serve.http.body import BodyLimit
from serve.http.schemas import RequestError


async def read_on(scope: Scope, receive: Receive, send: Send) -> None:
    while (await receive())["type"] == "http.request":
        pass


async def no_answer(_: Message) -> None:
    raise AssertionError


def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    async def receive() -> Message:
        await asyncio.sleep(0.03)
        return {"type": "http.request", "body": b"x", "more_body": True}  # a byte now and then

    limited = BodyLimit(read_on, max_body_bytes=10_000, timeout_s=0.1)
    with pytest.raises(RequestError) as raised:
        asyncio.run(limited({"type": "http"}, receive, no_answer))
    assert (raised.value.status, raised.value.code) == (408, "body_too_slow")


def test_a_whole_body_may_be_worked_on_for_longer() -> None:
    messages: list[Message] = [{"type": "http.request", "body": b"x"}]

    async def receive() -> Message:
        if messages:
            return messages.pop()
        await asyncio.sleep(0.2)
        return {"type": "http.disconnect"}

    asyncio.run(BodyLimit(read_on, max_body_bytes=10, timeout_s=0.05)({"type": "http"}, receive, no_answer))
