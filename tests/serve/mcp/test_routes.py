"""/mcp as the official client sees it, over HTTP and stand-ins for the deployments; real ones: tests/integration."""

from __future__ import annotations

import asyncio
import base64
import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from mcp.types import AudioContent, CallToolResult, EmbeddedResource, ImageContent, TextContent, Tool
from ray.exceptions import ActorDiedError
from rpc_requests import make_requests
from small_media import picture, sound
from stand_in_service import Method, World, serve

from serve.agent.tool_reply import ToolReply
from serve.artifacts import open_artifacts
from serve.http.access import KEYS_VARIABLE
from serve.mcp.server import PAGE_TOOLS

KEY = "a-key-of-the-tests"
LIST = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
HEADERS = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": "2025-11-25"}


class Tools:
    """Stands for the deployments that run tools: gives the first medium back, or fails as it is told."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.asked: list[tuple[str, Mapping[str, Any]]] = []
        self.failure: Exception | ToolReply | None = None
        self.invoke = Method(self._invoke)

    def _invoke(self, tool_id: str, arguments: Mapping[str, Any], caller: str) -> ToolReply:
        self.asked.append((tool_id, arguments))
        if isinstance(self.failure, Exception):
            raise self.failure
        if self.failure is not None:
            return self.failure
        store = open_artifacts(World(artifacts=str(self._folder)).args).of(caller)
        return ToolReply("as it was", store.info(next(iter(arguments.values()))))


@pytest.fixture
def tools(tmp_path: Path) -> Tools:
    return Tools(tmp_path)


def build_world(tools: Tools, folder: Path, **args: Any) -> World:
    return World(tools, artifacts=str(folder), **{"max_upload_bytes": 20_000, **args})


@asynccontextmanager
async def connect(url: str, key: str = "", mode: str = "auto") -> AsyncIterator[Client]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=30) as http,
        Client(streamable_http_client(f"{url}/mcp", http_client=http), mode=mode) as client,
    ):
        yield client


async def list_all(client: Client) -> list[Tool]:
    tools, cursor = [], None
    while True:
        page = await client.list_tools(cursor=cursor)
        tools += page.tools
        cursor = page.next_cursor
        if cursor is None:
            return tools


def words_of(result: CallToolResult) -> str:
    return "\n".join(block.text for block in result.content if isinstance(block, TextContent))


def _cause(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, MCPError)
    return error


def read_error(answer: httpx.Response) -> tuple[int, str]:
    """Status and code of an error in JSON-RPC's form."""
    body = answer.json()
    assert body.keys() == {"jsonrpc", "id", "error"}
    assert body["error"]["code"] in (-32600, -32603)
    assert "\n" not in body["error"]["message"]
    return answer.status_code, body["error"]["data"]["code"]


def encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.mark.parametrize(("mode", "version"), [("auto", "2026-07-28"), ("legacy", "2025-11-25")])
def test_media_go_in_and_come_out_byte_for_byte(mode: str, version: str, tools: Tools, tmp_path: Path) -> None:
    world = build_world(tools, tmp_path)
    video = picture(kind="GIF")

    async def talk(url: str) -> None:
        async with connect(url, mode=mode) as client:
            assert client.protocol_version == version
            result = await client.call_tool("local__detect-edges", {"image": encode(picture())})
            assert not result.is_error
            assert words_of(result).startswith("as it was\nartifact:")
            medium = result.content[-1]
            assert isinstance(medium, ImageContent)
            assert base64.b64decode(medium.data) == picture()
            result = await client.call_tool("local__remove-hum", {"audio": f"data:x/y;base64,{encode(sound())}"})
            medium = result.content[-1]
            assert isinstance(medium, AudioContent)
            assert base64.b64decode(medium.data) == sound()
            result = await client.call_tool("local__brighten-video", {"video": encode(video)})
            medium = result.content[-1]
            assert isinstance(medium, EmbeddedResource)
            again = await client.call_tool("local__brighten-video", {"video": medium.resource.uri})
            assert again.content == result.content, "a result's name goes into the next call"

    with serve(world) as url:
        asyncio.run(talk(url))
    assert [tool_id for tool_id, _ in tools.asked][:2] == ["local/detect-edges", "local/remove-hum"]
    text = world.client.get("/metrics").text
    assert 'toolmm_tool_seconds_count{tool_id="local/detect-edges"} 1.0' in text
    assert 'route="/mcp",status="200"' in text


def test_the_list_has_every_tool_that_the_service_runs(tools: Tools, tmp_path: Path) -> None:
    world = build_world(tools, tmp_path, tool_files=[str(_write_tool(tmp_path))])

    async def talk(url: str) -> None:
        async with connect(url) as client:
            listed = {tool.title: tool for tool in (await list_all(client))[1:]}
            assert listed.keys() == world.chat.specs.keys()
            assert len(listed) > 2 * PAGE_TOOLS, "so there were pages"
            edges = listed["local/detect-edges"]
            assert edges.description == world.chat.specs["local/detect-edges"].description
            assert edges.input_schema["required"] == ["image"]
            assert edges.annotations is not None
            assert edges.annotations.read_only_hint is True
            mail = listed["mine/send"].annotations
            assert mail is not None
            assert (mail.read_only_hint, mail.idempotent_hint) == (False, False)
            with pytest.raises(MCPError, match="cursor '51' is none"):
                await client.list_tools(cursor="51")

    with serve(world) as url:
        asyncio.run(talk(url))


def _write_tool(folder: Path) -> Path:
    file = folder / "mine.py"
    file.write_text(
        "from serve.tools.spec import Argument, ToolOutput, ToolSpec\n"
        "def send(words):\n    return ToolOutput('sent')\n"
        "SEND = ToolSpec('mine/send', send, 'Sends a mail.', (Argument('words', 'text', 'what to say'),), 'text',\n"
        "                has_side_effects=True)\n"
    )
    return file


def test_tools_are_found_by_words(tools: Tools, tmp_path: Path) -> None:
    async def talk(url: str) -> None:
        async with connect(url) as client:
            listed = {tool.name: tool for tool in await list_all(client)}
            result = await client.call_tool("tool_search", {"query": "remove the hum of the mains", "k": 3})
            assert result.structured_content == json.loads(words_of(result))
            found = [Tool.model_validate(tool) for tool in result.structured_content["tools"]]
            assert found[0].name == "local__remove-hum"
            assert found == [listed[tool.name] for tool in found], "all that a call needs"
            assert len(found) == 3
            for arguments, words in (
                ({}, "'query' is wrong: Field required"),
                ({"query": " "}, "instruction is empty"),
                ({"query": "x" * 51}, "at most 50"),
                ({"query": "x", "k": 0}, "'k' is wrong"),
                ({"query": "x", "k": "3"}, "'k' is wrong"),
                ({"query": "x", "more": 1}, "'more' is wrong"),
            ):
                refused = await client.call_tool("tool_search", arguments)
                assert refused.is_error
                assert words in words_of(refused)
                assert "\n" not in words_of(refused)

    with serve(build_world(tools, tmp_path)) as url:
        asyncio.run(talk(url))


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_failures_are_one_sentence(mode: str, tools: Tools, tmp_path: Path) -> None:
    async def talk(url: str) -> None:
        async with connect(url, mode=mode) as client:

            async def fail(arguments: dict[str, Any], failure: Exception | ToolReply | None = None) -> str:
                tools.failure = failure
                result = await client.call_tool("local__detect-edges", arguments)
                assert result.is_error
                (block,) = result.content
                assert isinstance(block, TextContent)
                assert not any(part in block.text for part in ("\n", "Traceback", ".py", "secret"))
                return block.text

            image = {"image": encode(picture())}
            assert await fail({"image": "x!"}) == (
                "The argument 'image': The medium is not valid base64 (standard alphabet, padded)."
            )
            assert "no artifact" in await fail(image, ToolReply(error="bad_media", message="There is no artifact."))
            assert "too long" in await fail(image, TimeoutError())
            assert "log" in await fail(image, RuntimeError("secret /home/x/y.py"))
            monkeypatched = ActorDiedError()
            assert "not available" in await fail(image, monkeypatched)
            with pytest.raises(MCPError, match="There is no tool 'other'") as raised:
                await client.call_tool("other", {})
            assert raised.value.code == -32602

    with pytest.MonkeyPatch.context() as patch, serve(build_world(tools, tmp_path)) as url:
        patch.setattr("serve.engine.calls.PAUSE_S", 0.0)
        asyncio.run(talk(url))


def test_keys_and_rates_hold(tools: Tools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEYS_VARIABLE, f"tester:{KEY}")

    async def talk(url: str) -> None:
        for key, words in (("", "No API key was sent"), ("another-key-of-the-tests", "The API key is wrong")):
            with pytest.raises(BaseExceptionGroup) as refused:
                async with connect(url, key, mode="legacy"):
                    pass
            assert words in str(_cause(refused.value)), "the client tells its user what is wrong"
        async with connect(url, KEY) as client:
            assert (await client.list_tools()).tools

    with serve(build_world(tools, tmp_path, requests_per_minute=5)) as url:
        asyncio.run(talk(url))
        wrong = httpx.post(f"{url}/mcp", json=LIST, headers=HEADERS | {"Authorization": "Bearer another-key-12345"})
        assert read_error(wrong) == (401, "invalid_api_key")
        assert wrong.headers["www-authenticate"] == "Bearer"
        headers = HEADERS | {"Authorization": f"Bearer {KEY}"}
        answers = [httpx.post(f"{url}/mcp", json=LIST, headers=headers) for _ in range(4)]
        assert answers[0].status_code == 200
        assert read_error(answers[-1]) == (429, "rate_limit_exceeded")
        assert int(answers[-1].headers["retry-after"]) > 0
    assert not tools.asked


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"Origin": "https://evil.example"}, 403, "bad_origin"),
        ({"Origin": "null"}, 403, "bad_origin"),
        ({"Host": "evil.example"}, 401, "invalid_api_key"),
        ({"X-Forwarded-For": "8.8.8.8"}, 401, "invalid_api_key"),
    ],
)
def test_without_keys_this_machine_alone_is_answered(
    headers: dict[str, str], status: int, code: str, tools: Tools, tmp_path: Path
) -> None:
    with serve(build_world(tools, tmp_path)) as url:
        answer = httpx.post(f"{url}/mcp", json=LIST, headers=HEADERS | headers)
        assert read_error(answer) == (status, code)
        same = httpx.post(f"{url}/mcp", json=LIST, headers=HEADERS | {"Origin": url})
        assert same.status_code == 200


def test_pages_of_named_origins_are_answered(tools: Tools, tmp_path: Path) -> None:
    page = {"Origin": "https://chat.example"}
    with serve(build_world(tools, tmp_path, cors_origins=[page["Origin"]])) as url:
        answer = httpx.post(f"{url}/mcp", json=LIST, headers=HEADERS | page)
        assert answer.json()["result"]["tools"]
        assert answer.headers["access-control-allow-origin"] == page["Origin"]
        other = httpx.post(f"{url}/mcp", json=LIST, headers=HEADERS | {"Origin": "https://evil.example"})
        assert read_error(other) == (403, "bad_origin")


def test_bodies_have_a_limit_and_answers_an_id(tools: Tools, tmp_path: Path) -> None:
    world = build_world(tools, tmp_path)

    def pieces() -> Any:
        for _ in range(world.args.max_body_bytes // 10_000 + 1):
            yield b"x" * 10_000

    with serve(world) as url:
        headers = HEADERS | {"Content-Type": "application/json", "X-Request-ID": "mine-1"}
        answer = httpx.post(f"{url}/mcp", json=LIST, headers=headers)
        assert (answer.status_code, answer.headers["x-request-id"]) == (200, "mine-1")
        unannounced = httpx.post(f"{url}/mcp", content=pieces(), headers=headers)
        assert read_error(unannounced) == (413, "body_too_large")
        announced = httpx.post(f"{url}/mcp", content=b"x" * (world.args.max_body_bytes + 1), headers=headers)
        assert read_error(announced) == (413, "body_too_large")
        broken = httpx.post(f"{url}/mcp", content=b"{", headers=headers)
        assert (broken.status_code, broken.json()["error"]["code"]) == (400, -32700)
        for method in ("GET", "DELETE"):
            assert httpx.request(method, f"{url}/mcp", headers=HEADERS).status_code == 405, "no events, no sessions"


def test_made_up_requests_are_answered_and_do_no_harm(tools: Tools, tmp_path: Path) -> None:
    """As `tests/integration/test_serve_fuzz.py` does it for the other routes."""
    world = build_world(tools, tmp_path)
    tools.failure = ToolReply("done")
    names = ("local/detect-edges", "local/remove-hum", "local/crop-image", "local/upscale-image")
    offered = {name.replace("/", "__"): [a.name for a in world.chat.specs[name].arguments] for name in names}
    values = [encode(picture()), encode(sound()), "artifact:../../secret.key", "0" * 32, "data:;base64,", 10**400, "\0"]
    answers: Counter[str] = Counter()
    with world.client as client:
        for request in make_requests(200, {**offered, "tool_search": ["query", "k"]}, values):
            answer = client.post("/mcp", content=request.body, headers=request.headers)
            assert answer.status_code < 500, (request, answer.text)
            assert "in its log" not in answer.text, "nobody had foreseen it"
            assert "Traceback" not in answer.text
            if answer.content:
                body = answer.json()
                assert body["jsonrpc"] == "2.0", request
                assert ("result" in body) != ("error" in body), request
                answers["result" if "result" in body else "error"] += 1
                answers["called"] += "done" in answer.text
        assert client.post("/mcp", json=LIST, headers=HEADERS).json()["result"]["tools"]
    assert min(answers["result"], answers["error"], answers["called"]) > 10, "they do not get far enough"
