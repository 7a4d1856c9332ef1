"""Others' servers, real ones over pipes and HTTP: listed, called, and gone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from other_mcp_server import COMMAND, serve_other
from small_media import picture
from stand_in_service import World

from serve.agent.tool_reply import ToolReply
from serve.artifacts import ArtifactStore, CallerArtifacts
from serve.config import McpServer
from serve.mcp_servers import servers as module
from serve.mcp_servers.servers import McpServers

KEY = "the key of the other"
Ask = Callable[..., Awaitable[ToolReply]]


@pytest.fixture
def store(tmp_path: Path) -> CallerArtifacts:
    return ArtifactStore(str(tmp_path), ttl_s=60, max_bytes=100_000).of("local")


def talk_to(
    entry: McpServer, store: CallerArtifacts, talk: Callable[[McpServers, Ask], Awaitable[None]], timeout_s: float = 30
) -> None:
    """Connect to one server, called "other"."""

    async def run() -> None:
        async with McpServers({"other": entry}, timeout_s, 300_000) as servers:

            async def ask(tool: str, **arguments: Any) -> ToolReply:
                return await servers.call(servers.tools[f"mcp/other/{tool}"], arguments, store)

            await talk(servers, ask)

    asyncio.run(run())


async def check_all(servers: McpServers, ask: Ask) -> None:
    assert len(servers.tools) == 10, "both pages, less the tool whose name is none"
    assert servers.tools["mcp/other/shout"].has_side_effects is False
    assert servers.tools["mcp/other/send"].has_side_effects is True
    assert (await ask("shout", words="hi")).text.startswith("HI\n")
    assert (await ask("nested", options={"a": [1]})).text == '{"got": {"a": [1]}}'
    failed = await ask("fail")
    assert failed.error == "failed"
    assert "\n" not in failed.message
    assert len((await ask("talk", n=200_000)).text) < 110_000
    too_much = await ask("talk", n=400_000)
    assert too_much.error in ("failed", "interrupted")
    assert (await ask("shout", words="again")).error is None, "the next call is answered"
    missing = await ask("nested")
    assert (missing.error, missing.message) == (
        "bad_arguments",
        "tool mcp/other/nested needs the argument 'options'; add it.",
    )


def test_a_command_is_listed_and_called(store: CallerArtifacts) -> None:
    talk_to(McpServer(command=COMMAND), store, check_all)


def test_an_address_is_listed_and_called_with_a_key_of_the_environment(
    store: CallerArtifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTHERS_KEY", f"Bearer {KEY}")
    with serve_other(KEY) as url:
        talk_to(McpServer(url=url, headers={"Authorization": "OTHERS_KEY"}), store, check_all)


def test_media_go_in_and_come_out_byte_for_byte(store: CallerArtifacts) -> None:
    given = store.put(picture(), name="mine.png")

    async def talk(_: McpServers, ask: Ask) -> None:
        for name in (given.id, f"artifact:{given.id}"):
            reply = await ask("mirror", image=name)
            assert reply.artifact is not None
            assert store.open(reply.artifact.id)[1] == picture()
        data = await ask("shout", words=f"artifact:{given.id}")
        assert data.text.startswith("DATA:IMAGE/PNG;BASE64,"), "a text that names an artifact goes as its data"
        assert (await ask("mirror", image="0" * 32)).error == "bad_media"
        plain = await ask("shout", words="0" * 32)
        assert plain.text.startswith("0" * 32)

    talk_to(McpServer(command=COMMAND), store, talk)


def test_a_call_with_side_effects_is_made_once_and_others_again(store: CallerArtifacts, tmp_path: Path) -> None:
    async def talk(_: McpServers, ask: Ask) -> None:
        died = await ask("send", words="die")
        assert died.error == "interrupted"
        assert "look before you call it again" in died.message
        assert (await ask("count", file=str(tmp_path / "n"))).text == "xx", "asked again of a server started anew"
        assert (await ask("send", words="hi")).error is None

    talk_to(McpServer(command=COMMAND), store, talk)


def test_calls_end_in_time(store: CallerArtifacts) -> None:
    async def talk(_: McpServers, ask: Ask) -> None:
        reply = await ask("sleep")
        assert reply.error == "timeout"
        assert "took longer than 0.5 s" in reply.message
        assert (await ask("shout", words="hi")).error is None

    talk_to(McpServer(command=COMMAND), store, talk, timeout_s=0.5)


@pytest.mark.slow
def test_servers_that_are_not_there_are_warned_of_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LIST_TIMEOUT_S", 8.0)

    async def run(url: str) -> None:
        servers = {
            "good": McpServer(command=COMMAND),
            "down": McpServer(url="http://127.0.0.1:9/mcp"),
            "refused": McpServer(url=url),
            "missing": McpServer(command=["/no/such/program"]),
            "silent": McpServer(command=["sleep", "100"]),
            "gone": McpServer(command=["false"]),
            "unset": McpServer(url=url, headers={"X-Key": "NO_SUCH_VARIABLE"}),
        }
        async with McpServers(servers, 5, 100_000) as connected:
            assert {tool.server for tool in connected.tools.values()} == {"good"}

    with serve_other(KEY) as url, caplog.at_level(logging.WARNING, "ray.serve"):
        asyncio.run(run(url))
    warnings = [record for record in caplog.records if "starts without" in record.getMessage()]
    told = {record.getMessage().split()[2].rstrip(":"): record.getMessage() for record in warnings}
    assert told.keys() == {"down", "refused", "missing", "silent", "gone", "unset"}
    assert "NO_SUCH_VARIABLE is not set" in told["unset"]
    assert "no answer within 8 s" in told["silent"]
    assert len(warnings) == len(told)
    assert not any("\n" in record.getMessage() or record.exc_info for record in warnings)


def test_their_tools_are_tools_of_the_service(tmp_path: Path) -> None:
    world = World(mcp_servers={"other": COMMAND}, artifacts=str(tmp_path))
    with world.client as client:
        others = {tool["tool_id"]: tool for tool in client.get("/v1/tools").json()["others"]}
        assert others["mcp/other/shout"]["backend"] == "mcp"
        assert others["mcp/other/shout"]["parameters"]["required"] == ["words"]
        answer = client.post("/v1/tools/mcp/other/shout/invoke", json={"arguments": {"words": "hi"}})
        assert answer.status_code == 200, answer.text
        assert answer.json()["text"].startswith("HI\n")
        failed = client.post("/v1/tools/mcp/other/fail/invoke", json={"arguments": {}})
        assert (failed.status_code, failed.json()["error"]["code"]) == (422, "failed")
        died = client.post("/v1/tools/mcp/other/send/invoke", json={"arguments": {"words": "die"}})
        assert (died.status_code, died.json()["error"]["code"]) == (502, "interrupted")
        found = asyncio.run(world.chat.search_tools("say it loudly", 3))
        assert found[0].tool_id == "mcp/other/shout"
        metrics = client.get("/metrics").text
        assert 'toolmm_tool_failures_total{code="failed",tool_id="mcp/other/fail"} 1.0' in metrics
        assert 'toolmm_deployment_requests{deployment="mcp/other"} 0.0' in metrics
