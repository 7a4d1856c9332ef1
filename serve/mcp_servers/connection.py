"""One connection to another's MCP server, over HTTP or to a command's standard input and output."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import cast

import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from data_pipeline.errors import InputError
from serve.config import McpServer
from serve.mcp_servers.pipes import open_pipes

logger = logging.getLogger("ray.serve")

CLOSE_S = 10.0  # a command has a few seconds to end by itself


class Connection:
    """A client that stays connected; where the connection broke, the next call makes another."""

    def __init__(self, open_client: Callable[[], AbstractAsyncContextManager[Client]]) -> None:
        """`open_client` connects, and closes at its end."""
        self._open = open_client
        self._lock = asyncio.Lock()
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()  # with those that still close an earlier connection
        self._client: Client | None = None

    async def client(self) -> Client:
        """The client, connected; whatever went wrong in connecting is raised."""
        async with self._lock:
            client = self._client
            if client is None or self._task is None or self._task.done():
                opened: asyncio.Future[Client] = asyncio.get_running_loop().create_future()
                self._closing = asyncio.Event()
                self._task = asyncio.create_task(self._hold(opened, self._closing))
                self._tasks.add(self._task)
                self._task.add_done_callback(self._tasks.discard)
                try:
                    client = await asyncio.shield(opened)
                except BaseException:
                    self._task.cancel()
                    raise
                self._client = client
            return client

    def drop(self, client: Client) -> None:
        """Give a client up whose connection broke; another call may have done so already."""
        if self._client is client:
            self._client = None
            self._closing.set()

    async def close(self) -> None:
        """End the connection, and the command that it talks to."""
        self._client = None
        self._closing.set()
        if self._tasks:
            _, late = await asyncio.wait(set(self._tasks), timeout=CLOSE_S)
            for task in late:
                task.cancel()

    async def _hold(self, opened: asyncio.Future[Client], closing: asyncio.Event) -> None:
        """Connect and close in one task, as the SDK demands."""
        try:
            async with self._open() as client:
                opened.set_result(client)
                await closing.wait()
        except Exception as error:  # noqa: BLE001  (raised where the client is waited for; later, calls fail by themselves)
            if not opened.done():
                opened.set_exception(error)
            else:
                logger.warning("a connection to an MCP server ended with %s", type(error).__name__)


@asynccontextmanager
async def open_client(server: McpServer, max_bytes: int) -> AsyncIterator[Client]:
    """Connect by the config, in the newest revision that both sides speak.

    Args:
        server: its entry in `mcp_servers`; what it names comes from this process' environment.
        max_bytes: of one answer; a larger one is not read to its end.

    Raises:
        InputError: the environment lacks what the config names.
    """
    # no callbacks: a server may neither ask for the model (sampling) nor for the user (elicitation) nor for folders
    if server.url is None:
        environment = {name: _read_variable(name) for name in server.environment}
        async with Client(open_pipes(server.command, environment, max_bytes)) as client:
            yield client
        return
    headers = {header: _read_variable(name) for header, name in server.headers.items()}
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(
            httpx2.AsyncClient(
                headers=headers | {"Accept-Encoding": "identity"},
                transport=_BoundedTransport(httpx2.AsyncHTTPTransport(), max_bytes),
                timeout=httpx2.Timeout(30.0, read=None),  # a call has its own limit, and events may take their time
            )
        )
        transport = streamable_http_client(server.url, http_client=http, max_sse_event_size=max_bytes)
        yield await stack.enter_async_context(Client(transport))


def _read_variable(name: str) -> str:
    value = os.environ.get(name)
    if not value:
        raise InputError(f"the environment variable {name} is not set")
    return value


class _BoundedTransport(httpx2.AsyncBaseTransport):
    """HTTP whose answers end in an error where they grow too large."""

    def __init__(self, inner: httpx2.AsyncBaseTransport, max_bytes: int) -> None:
        self._inner = inner
        self._max_bytes = max_bytes

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await self._inner.handle_async_request(request)
        encoding = response.headers.get("content-encoding", "identity").lower()
        if encoding != "identity":  # nobody asked for it, and a small body may become a huge one
            await response.aclose()
            raise httpx2.DecodingError(f"the answer is compressed ({encoding[:20]}), which was not asked for")
        response.stream = _BoundedStream(cast(httpx2.AsyncByteStream, response.stream), self._max_bytes)
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()


class _BoundedStream(httpx2.AsyncByteStream):
    def __init__(self, inner: httpx2.AsyncByteStream, max_bytes: int) -> None:
        self._inner = inner
        self._max_bytes = max_bytes

    async def __aiter__(self) -> AsyncIterator[bytes]:
        n_bytes = 0
        async for part in self._inner:
            n_bytes += len(part)
            if n_bytes > self._max_bytes:
                raise httpx2.StreamError(f"the answer is larger than {self._max_bytes} bytes")
            yield part

    async def aclose(self) -> None:
        await self._inner.aclose()
