"""Streams as bytes on the wire, and artifacts whole and in parts."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from small_media import sound
from stand_in_service import World
from starlette.types import Message

from data_pipeline.errors import InputError
from serve.chat import routes

CHATS = "/v1/chat/completions"
CHAT: dict[str, Any] = {"model": "toolmm", "messages": [{"role": "user", "content": "grüße"}], "stream": True}


def answer_with(world: World, monkeypatch: pytest.MonkeyPatch, events: AsyncIterator[str]) -> None:
    """Let the next chat be answered with these events."""

    async def complete(_: object) -> AsyncIterator[str]:
        return events

    monkeypatch.setattr(world.chat, "complete", complete)


def test_events_have_openais_bytes() -> None:
    answer = World().client.post(CHATS, json=CHAT)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-store"
    *events, end = answer.content.split(b"\n\n")
    assert (events[-1], end) == (b"data: [DONE]", b"")
    assert all(event.startswith(b"data: ") and event.count(b"\n") == 0 and b"\r" not in event for event in events)
    first, *_, last = (json.loads(event.removeprefix(b"data: ")) for event in events[:-1])
    assert first["choices"][0]["delta"]["role"] == "assistant"
    assert last["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize(
    ("error", "code", "kind"),
    [
        (TimeoutError(), "timeout", "server_error"),
        (InputError("Too\nlong."), "bad_request", "invalid_request_error"),
        (RuntimeError("secret"), "internal_error", "server_error"),
    ],
)
def test_an_error_in_a_stream_is_its_last_event(
    error: Exception, code: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def events() -> AsyncIterator[str]:
        yield "{}"
        raise error

    world = World()
    answer_with(world, monkeypatch, events())
    first, last, end = world.client.post(CHATS, json=CHAT).content.split(b"\n\n")
    assert (first, end) == (b"data: {}", b"")
    told = json.loads(last.removeprefix(b"data: "))["error"]
    assert (told["code"], told["type"]) == (code, kind)
    assert b"secret" not in last


def test_a_stream_without_news_is_kept_alive_by_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    async def events() -> AsyncIterator[str]:
        await asyncio.sleep(0.3)
        yield "{}"

    monkeypatch.setattr(routes.EventSourceResponse, "DEFAULT_PING_INTERVAL", 0.1)
    world = World()
    answer_with(world, monkeypatch, events())
    *comments, event, end = world.client.post(CHATS, json=CHAT).content.split(b"\n\n")
    assert (event, end) == (b"data: {}", b"")
    assert comments
    assert all(comment.startswith(b": ") for comment in comments)


def test_a_stream_ends_when_its_client_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []
    world = World()

    async def events() -> AsyncIterator[str]:
        try:
            yield "{}"
            await asyncio.sleep(60)
        finally:
            ended.append("yes")

    answer_with(world, monkeypatch, events())
    messages: list[Message] = [{"type": "http.request", "body": json.dumps(CHAT).encode()}]
    sent: list[Message] = []

    async def talk() -> None:
        has_begun = asyncio.Event()

        async def receive() -> Message:
            if messages:
                return messages.pop()
            await has_begun.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            sent.append(message)
            if message.get("body"):
                has_begun.set()

        scope = {
            "type": "http",
            "method": "POST",
            "path": CHATS,
            "query_string": b"",
            "headers": [(b"content-type", b"application/json"), (b"host", b"127.0.0.1")],
            "client": ("127.0.0.1", 50_000),
        }
        async with asyncio.timeout(20):
            await world.api(scope, receive, send)

    asyncio.run(talk())
    assert ended == ["yes"]
    assert [message["body"] for message in sent[1:]] == [b"data: {}\n\n"]


@pytest.mark.parametrize("place", ["directory", "bucket"])
def test_artifacts_come_back_whole(place: str, tmp_path: Path) -> None:
    world = World(artifacts=str(tmp_path) if place == "directory" else f"memory://{uuid.uuid4().hex}")
    data = sound()
    artifact = world.chat.store.put(data, "audio/wav")
    answer = world.client.get(f"/v1/artifacts/{artifact.id}")
    assert (answer.status_code, answer.content) == (200, data)
    assert answer.headers["content-type"] == "audio/wav"
    assert answer.headers["content-length"] == str(len(data))
    assert answer.headers["etag"] == f'"{artifact.sha256}"'
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-disposition"].startswith("inline; ")


def test_a_part_of_an_artifact_can_be_asked_for(tmp_path: Path) -> None:
    """As browsers do when somebody moves along a sound or a video (RFC 9110, sections 13.1.5 and 14)."""
    world = World(artifacts=str(tmp_path))
    data = sound()
    artifact = world.chat.store.put(data, "audio/wav")

    def get(**headers: str) -> Any:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return world.client.get(f"/v1/artifacts/{artifact.id}", headers=named)

    assert get().headers["accept-ranges"] == "bytes"
    part = get(Range="bytes=4-7")
    assert (part.status_code, part.content) == (206, data[4:8])
    assert part.headers["content-range"] == f"bytes 4-7/{len(data)}"
    assert part.headers["content-type"] == "audio/wav"
    assert get(Range="bytes=-10").content == data[-10:]
    assert get(Range="bytes=0-3", If_Range=f'"{artifact.sha256}"').content == data[:4]
    assert get(Range="bytes=0-3", If_Range='"another"').content == data, "it has changed, so it comes whole"
    beyond = get(Range=f"bytes={len(data)}-")
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{len(data)}")


def test_an_artifact_whose_data_is_gone_is_told_as_missing(tmp_path: Path) -> None:
    world = World(artifacts=str(tmp_path))
    artifact = world.chat.store.put(sound())
    (tmp_path / f"{artifact.id}.data").unlink()
    answer = world.client.get(f"/v1/artifacts/{artifact.id}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "artifact_not_found")
