"""Streams as bytes on the wire, and artifacts whole and in parts."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from small_media import picture, sound
from stand_in_service import Method, World, serve
from starlette.types import Message

from data_pipeline.errors import InputError
from serve.agent.tool_reply import LOCAL_TOOLS, ToolReply
from serve.artifacts import CallerArtifacts
from serve.chat import routes

KEYS = {"ada": "the-key-of-ada-of-the-tests", "bob": "the-key-of-bob-of-the-tests"}
CHATS = "/v1/chat/completions"
CHAT: dict[str, Any] = {"model": "toolmm", "messages": [{"role": "user", "content": "grüße"}], "stream": True}


def answer_with(world: World, monkeypatch: pytest.MonkeyPatch, events: AsyncIterator[str]) -> None:
    """Let the next chat be answered with these events."""

    async def complete(*_: object) -> AsyncIterator[str]:
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
    *comments, end = world.client.post(CHATS, json=CHAT).content.split(b"\n\n")
    assert end == b""
    comments.remove(b"data: {}")  # a comment may still follow it
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
    artifact = world.chat.store.of("local").put(data, "audio/wav")
    answer = world.client.get(f"/v1/artifacts/{artifact.id}")
    assert (answer.status_code, answer.content) == (200, data)
    assert answer.headers["content-type"] == "audio/wav"
    assert answer.headers["content-length"] == str(len(data))
    assert answer.headers["etag"] == f'"{artifact.sha256}"'
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-disposition"].startswith("inline; ")


def test_a_store_that_does_not_answer_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(artifacts=str(tmp_path), request_timeout_s=0.1)
    for name in ("put", "locate", "delete"):
        monkeypatch.setattr(CallerArtifacts, name, lambda *_: time.sleep(0.4))
    path = f"/v1/artifacts/{'0' * 32}"
    for answer in (
        world.client.post("/v1/artifacts", files={"file": ("a", picture())}),
        world.client.get(path),
        world.client.delete(path),
    ):
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")


def test_a_part_of_an_artifact_can_be_asked_for(tmp_path: Path) -> None:
    """As browsers do when somebody moves along a sound or a video (RFC 9110, sections 13.1.5 and 14)."""
    world = World(artifacts=str(tmp_path))
    data = sound()
    artifact = world.chat.store.of("local").put(data, "audio/wav")

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
    artifact = world.chat.store.of("local").put(sound())
    next(tmp_path.glob(f"*/{artifact.id}.data")).unlink()
    answer = world.client.get(f"/v1/artifacts/{artifact.id}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "artifact_not_found")


def test_what_a_client_has_is_not_sent_again(tmp_path: Path) -> None:
    """RFC 9110, section 13.1.2: tags compared weakly, before any Range; 304 bears what a cache goes by."""
    world = World(artifacts=str(tmp_path))
    artifact = world.chat.store.of("local").put(sound())
    etag = f'"{artifact.sha256}"'
    for known in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        headers = {"If-None-Match": known, "Range": "bytes=0-3"}
        answer = world.client.get(f"/v1/artifacts/{artifact.id}", headers=headers)
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", etag)
        assert "max-age" in answer.headers["cache-control"]
        assert "content-type" not in answer.headers
    assert world.client.get(f"/v1/artifacts/{artifact.id}", headers={"If-None-Match": '"other"'}).content == sound()


@pytest.mark.parametrize("place", ["directory", "bucket"])
def test_an_artifact_is_its_keys_own(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOOLMM_API_KEYS", f"ada:{KEYS['ada']},bob:{KEYS['bob']}")
    uri = str(tmp_path) if place == "directory" else f"memory://{uuid.uuid4().hex}"
    world = World(artifacts=uri, max_upload_bytes=5000, artifact_bytes_per_key=8000)

    def ask(name: str, method: str, path: str, **more: Any) -> Any:
        return world.client.request(method, path, headers={"Authorization": f"Bearer {KEYS[name]}"}, **more)

    def upload(name: str, data: bytes = sound()) -> Any:
        return ask(name, "POST", "/v1/artifacts", files={"file": ("a", data)})

    ada, bob = (upload(name).json() for name in ("ada", "bob"))
    assert ada["id"] != bob["id"]
    picture_of_ada = upload("ada", picture()).json()["id"]
    part = {"type": "image_url", "image_url": {"url": f"artifact:{picture_of_ada}"}}
    chat = {"model": "toolmm", "messages": [{"role": "user", "content": [{"type": "text", "text": "sharpen"}, part]}]}
    items = [
        {"type": "input_text", "text": "sharpen"},
        {"type": "input_image", "image_url": f"artifact:{picture_of_ada}"},
    ]
    tool = "/v1/tools/local/detect-edges/invoke"
    assert ask("ada", "POST", CHATS, json=chat).status_code == 200
    for method, path, body in (
        ("GET", ada["path"], None),
        ("HEAD", ada["path"], None),
        ("DELETE", ada["path"], None),
        ("POST", CHATS, chat),
        ("POST", "/v1/responses", {"model": "toolmm", "input": [{"role": "user", "content": items}]}),
    ):
        answer = ask("bob", method, path, json=body)
        assert answer.status_code == 404, (method, path)
        assert method == "HEAD" or answer.json()["error"]["code"] == "artifact_not_found"
    words = {"role": "user", "content": f"sharpen artifact:{picture_of_ada}"}
    mentioned = ask("bob", "POST", CHATS, json={"model": "toolmm", "messages": [words]}).text
    assert '"image\\"' not in mentioned, "another's id in words is words"
    asked: list[Any] = []

    def run_tool(*call: Any) -> ToolReply:
        asked.append(call)
        return ToolReply("done")

    host = type("Host", (), {"invoke": Method(run_tool)})
    world.chat._calls._hosts[LOCAL_TOOLS] = host
    ask("bob", "POST", tool, json={"arguments": {"image": picture_of_ada}})
    assert asked == [("local/detect-edges", {"image": picture_of_ada}, "bob")], "the host looks among the caller's"
    full = [upload("ada", picture(value)) for value in range(1, 60)][-1]
    assert (full.status_code, full.json()["error"]["code"]) == (413, "artifact_quota_exceeded")
    assert upload("bob", picture(9)).status_code == 200
    assert (gone := ask("ada", "DELETE", ada["path"])).status_code == 204
    assert gone.content == b""
    for method in ("GET", "DELETE"):
        assert ask("ada", method, ada["path"]).status_code == 404
    assert upload("ada", picture(200)).status_code == 200, "there is room again"
    assert ask("bob", "GET", bob["path"]).content == sound()


def test_a_key_has_so_many_requests_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream is under way until its last event; the place is free again also where its client has gone."""
    monkeypatch.setenv("TOOLMM_API_KEYS", f"ada:{KEYS['ada']},bob:{KEYS['bob']}")
    world = World(requests_at_once=2)

    async def events() -> AsyncIterator[str]:
        yield "{}"
        await asyncio.sleep(60)

    async def complete(*_: object) -> AsyncIterator[str]:
        return events()

    monkeypatch.setattr(world.chat, "complete", complete)
    with serve(world) as url:

        def models(name: str) -> httpx.Response:
            return httpx.get(f"{url}/v1/models", headers={"Authorization": f"Bearer {KEYS[name]}"})

        ada = {"Authorization": f"Bearer {KEYS['ada']}"}
        with (
            httpx.Client(base_url=url, headers=ada) as client,
            client.stream("POST", CHATS, json=CHAT) as one,
            client.stream("POST", CHATS, json=CHAT) as two,
        ):
            assert (one.status_code, two.status_code) == (200, 200)
            refused = models("ada")
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_at_once")
            assert refused.headers["retry-after"] == "1"
            assert models("bob").status_code == 200
            assert httpx.get(f"{url}/healthz").status_code == 200
        deadline = time.monotonic() + 10
        while models("ada").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert [models("ada").status_code for _ in range(5)] == [200] * 5
