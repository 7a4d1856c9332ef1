"""MCP both ways on a real service: the official client at /mcp, and another server's tools behind the service."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from mcp.types import AudioContent, CallToolResult, EmbeddedResource, ImageContent, TextContent, Tool
from other_mcp_server import COMMAND

from serve.http.access import KEYS_VARIABLE
from tests.integration.serve_command import serving
from tests.integration.small_service import make_bundle, make_encoder, picture, sound, video

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm_python")]

KEY = "a-key-of-the-tests"
BEARER = {"Authorization": f"Bearer {KEY}"}
TIMEOUT_S = 180  # the first call waits for a replica of the tools


@dataclass(frozen=True)
class Service:
    url: str
    artifacts: Path

    def holds(self, data: bytes) -> bool:
        """Whether the store has exactly these bytes."""
        return any(file.read_bytes() == data for file in self.artifacts.rglob("*.data"))

    def artifact(self, result: CallToolResult) -> bytes:
        """The artifact that a result names, as its own route gives it."""
        [name] = [words for words in texts(result) if words.startswith("artifact:")]
        path = name.split()[0].removeprefix("artifact:")
        answer = httpx.get(f"{self.url}/v1/artifacts/{path}", headers=BEARER)
        assert answer.status_code == 200, answer.text
        return answer.content


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("mcp")
    bundle = make_bundle(folder / "bundle", folder / "backbone", make_encoder(folder / "encoder"))
    servers = {"other": COMMAND, "down": "http://127.0.0.1:9/mcp"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEYS_VARIABLE, f"tester:{KEY}")
        with serving(bundle, folder / "artifacts", f"mcp_servers={json.dumps(servers)}") as served:
            yield Service(served.url, folder / "artifacts")


@asynccontextmanager
async def connect(service: Service, mode: str = "auto", **headers: str) -> AsyncIterator[Client]:
    async with (
        httpx2.AsyncClient(headers=headers, timeout=TIMEOUT_S) as http,
        Client(streamable_http_client(f"{service.url}/mcp", http_client=http), mode=mode) as client,
    ):
        yield client


def talk(service: Service, say: Callable[[Client], Awaitable[None]], mode: str = "auto") -> None:
    async def run() -> None:
        async with connect(service, mode, **BEARER) as client:
            await say(client)

    asyncio.run(run())


def texts(result: CallToolResult) -> list[str]:
    return [block.text for block in result.content if isinstance(block, TextContent)]


def encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_keys_are_asked_for(service: Service) -> None:
    async def knock(**headers: str) -> None:
        async with connect(service, "legacy", **headers):
            pass

    for headers in ({}, {"Authorization": "Bearer another-key-of-the-tests"}):
        with pytest.raises(BaseExceptionGroup) as refused:
            asyncio.run(knock(**headers))
        error: BaseException = refused.value
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        assert isinstance(error, MCPError)
        assert "API key" in error.message
    foreign = httpx.post(f"{service.url}/mcp", json={}, headers=BEARER | {"Origin": "https://evil.example"})
    assert foreign.status_code == 403
    asyncio.run(knock(**BEARER))


@pytest.mark.parametrize(("mode", "version"), [("auto", "2026-07-28"), ("legacy", "2025-11-25")])
def test_a_picture_goes_in_and_comes_out_byte_for_byte(mode: str, version: str, service: Service) -> None:
    async def say(client: Client) -> None:
        assert client.protocol_version == version
        data = picture(seed=len(mode))
        result = await client.call_tool("local__detect-edges", {"image": encode(data)})
        assert not result.is_error, result
        assert service.holds(data)
        medium = result.content[-1]
        assert isinstance(medium, ImageContent)
        assert base64.b64decode(medium.data) == service.artifact(result)
        assert medium.mime_type == "image/png"

    talk(service, say, mode)


def test_a_sound_and_a_video_go_in_and_come_out_byte_for_byte(service: Service) -> None:
    async def say(client: Client) -> None:
        data = sound()
        result = await client.call_tool("local__reduce-noise", {"audio": f"data:audio/wav;base64,{encode(data)}"})
        assert not result.is_error, result
        assert service.holds(data)
        medium = result.content[-1]
        assert isinstance(medium, AudioContent)
        assert base64.b64decode(medium.data) == service.artifact(result)
        data = video()
        result = await client.call_tool("local__brighten-video", {"video": encode(data)})
        assert not result.is_error, result
        assert service.holds(data)
        clip = result.content[-1]
        assert isinstance(clip, EmbeddedResource)
        blob = clip.resource.blob  # pyright: ignore[reportAttributeAccessIssue]
        assert base64.b64decode(blob) == service.artifact(result)
        poster = await client.call_tool("local__extract-poster-frame", {"video": clip.resource.uri})
        assert isinstance(poster.content[-1], ImageContent), "one tool's result is the next one's medium"

    talk(service, say)


def test_tools_are_listed_and_found(service: Service) -> None:
    async def say(client: Client) -> None:
        listed: list[Tool] = []
        cursor = None
        while not listed or cursor:
            page = await client.list_tools(cursor=cursor)
            listed, cursor = listed + page.tools, page.next_cursor
        known = httpx.get(f"{service.url}/v1/tools", headers=BEARER).json()
        runs = {tool["tool_id"] for tool in known["tools"] + known["others"] if tool["parameters"] is not None}
        assert {tool.title for tool in listed[1:]} == runs
        found = await client.call_tool("tool_search", {"query": "Remove the hum of the mains", "k": 3})
        assert found.structured_content["tools"][0]["name"] == "local__remove-hum"

    talk(service, say)


def test_failures_are_one_sentence(service: Service) -> None:
    async def say(client: Client) -> None:
        damaged = picture()[:60]
        for tool, arguments, words in (
            ("local__detect-edges", {}, "needs the argument 'image'"),
            ("local__detect-edges", {"image": "artifact:" + "0" * 32}, "There is no artifact"),
            ("local__detect-edges", {"image": encode(b"no picture")}, "of no kind that is accepted"),
            ("local__detect-edges", {"image": encode(damaged)}, "local/detect-edges"),
            ("local__detect-edges", {"image": encode(picture()), "more": 1}, "has no argument 'more'"),
            ("tool_search", {"query": ""}, "empty"),
            ("mcp__other__fail", {}, "mcp/other/fail: It broke."),
        ):
            result = await client.call_tool(tool, arguments)
            assert result.is_error, tool
            [text] = texts(result)
            assert words in text
            assert not any(part in text for part in ("\n", "Traceback", ".py", "ray::", "/tmp"))
        with pytest.raises(MCPError, match="There is no tool 'nothing'"):
            await client.call_tool("nothing", {})

    talk(service, say)


def test_anothers_tools_run_behind_the_service(service: Service) -> None:
    data = picture(seed=5)

    async def say(client: Client) -> None:
        result = await client.call_tool("mcp__other__mirror", {"image": encode(data)})
        medium = result.content[-1]
        assert isinstance(medium, ImageContent)
        assert base64.b64decode(medium.data) == data, "to the other server and back, byte for byte"
        died = await client.call_tool("mcp__other__send", {"words": "die"})
        assert died.is_error
        assert "look before you call it again" in texts(died)[0]
        result = await client.call_tool("mcp__other__shout", {"words": "hi"})
        assert texts(result)[0].startswith("HI\n"), "it is started anew"
        names = (await client.call_tool("mcp__other__environment", {})).content[0]
        assert isinstance(names, TextContent)
        assert KEYS_VARIABLE not in names.text

    talk(service, say)
    uploaded = httpx.post(f"{service.url}/v1/artifacts", files={"file": ("a.png", data)}, headers=BEARER).json()
    call: dict[str, Any] = {"arguments": {"image": uploaded["id"]}}
    answer = httpx.post(f"{service.url}/v1/tools/mcp/other/mirror/invoke", json=call, headers=BEARER, timeout=TIMEOUT_S)
    assert answer.status_code == 200, answer.text
    mirrored = httpx.get(service.url + answer.json()["artifact"]["path"], headers=BEARER).content
    assert hashlib.sha256(mirrored).digest() == hashlib.sha256(data).digest()
