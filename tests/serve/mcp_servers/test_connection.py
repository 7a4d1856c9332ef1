"""One connection for all calls; another where it broke; and none left at the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2
import pytest
from mcp import Client
from mcp.shared.exceptions import MCPError
from other_mcp_server import build, serve_other

from data_pipeline.errors import InputError
from serve.config import McpServer
from serve.mcp_servers.connection import Connection, _BoundedTransport, open_client


class Counted:
    """Opens clients, and knows how many are open."""

    def __init__(self) -> None:
        self.n_opened = self.n_open = 0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Client]:
        async with Client(build()) as client:
            self.n_opened += 1
            self.n_open += 1
            try:
                yield client
            finally:
                self.n_open -= 1


def test_calls_share_a_connection_and_a_broken_one_is_replaced() -> None:
    async def run() -> None:
        counted = Counted()
        connection = Connection(counted.open)
        first, second = await asyncio.gather(connection.client(), connection.client())
        assert first is second
        assert counted.n_opened == 1
        connection.drop(first)
        connection.drop(first)
        third = await connection.client()
        assert third is not first
        connection.drop(first)
        assert await connection.client() is third, "what is told late of the first does not end the third"
        await connection.close()
        assert (counted.n_opened, counted.n_open) == (2, 0)

    asyncio.run(run())


def test_whoever_waits_too_long_leaves_nothing_behind() -> None:
    n_cancelled = 0

    @asynccontextmanager
    async def open_never() -> AsyncIterator[Client]:
        nonlocal n_cancelled
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            n_cancelled += 1
            raise
        yield Client(build())

    async def run() -> None:
        connection = Connection(open_never)
        for _ in range(2):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await connection.client()
        await connection.close()

    asyncio.run(run())
    assert n_cancelled == 2


def test_a_fault_in_connecting_is_raised() -> None:
    async def run() -> None:
        connection = Connection(lambda: open_client(McpServer(url="http://x", headers={"X": "NO_SUCH_VARIABLE"}), 1000))
        for _ in range(2):
            with pytest.raises(InputError, match="NO_SUCH_VARIABLE is not set"):
                await connection.client()
        await connection.close()

    asyncio.run(run())


def test_answers_over_http_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHERS_KEY", "Bearer key")

    async def run(url: str) -> None:
        async with open_client(McpServer(url=url, headers={"Authorization": "OTHERS_KEY"}), 50_000) as client:
            await client.call_tool("talk", {"n": 30_000})
            with pytest.raises(MCPError, match="larger than 50000 bytes"):
                await client.call_tool("talk", {"n": 60_000})
            await client.call_tool("talk", {"n": 30_000})

    with serve_other("key") as url:
        asyncio.run(run(url))


def test_a_compressed_answer_is_refused() -> None:
    def answer(_: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers={"Content-Encoding": "gzip"}, content=b"")

    async def run() -> None:
        transport = _BoundedTransport(httpx2.MockTransport(answer), 1000)
        async with httpx2.AsyncClient(transport=transport) as client:
            with pytest.raises(httpx2.DecodingError, match="compressed"):
                await client.get("http://x")

    asyncio.run(run())
