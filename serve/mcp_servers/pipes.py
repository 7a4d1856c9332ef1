"""MCP over a command's standard input and output, one JSON message a line, none of them longer than is allowed.

The SDK's own transport has no limit, and joins a line from its pieces in time that grows with the square of its length:
a command that writes one long line would keep the ingress from all other work.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator, Mapping, Sequence

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.client.stdio import get_default_environment
from mcp.shared.message import SessionMessage
from mcp.types import jsonrpc_message_adapter

logger = logging.getLogger("ray.serve")

STOP_S = 2.0  # for a command to end by itself once its input has ended, and again after SIGTERM

_Received = SessionMessage | Exception
_Streams = tuple[MemoryObjectReceiveStream[_Received], MemoryObjectSendStream[SessionMessage]]


@contextlib.asynccontextmanager
async def open_pipes(
    command: Sequence[str], environment: Mapping[str, str], max_line_bytes: int
) -> AsyncIterator[_Streams]:
    """Start a command and talk to it, as a transport of the SDK's `Client`; at the end it is stopped with its children.

    Args:
        command: program and arguments.
        environment: beside PATH, HOME and the like, which is all that it gets of this process'.
        max_line_bytes: of one message; a longer one ends the connection.

    Raises:
        OSError: it cannot be started.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,  # what it says on standard error goes where ours goes: into the replica's log
        env=get_default_environment() | dict(environment),
        limit=max_line_bytes,
        start_new_session=True,  # so that its children can be stopped with it
    )
    received, reading = anyio.create_memory_object_stream[_Received](0)
    writing, to_send = anyio.create_memory_object_stream[SessionMessage](0)
    try:
        async with received, reading, writing, to_send, anyio.create_task_group() as tasks:
            tasks.start_soon(_read, process, received)
            tasks.start_soon(_write, process, to_send, received)
            try:
                yield reading, writing
            finally:
                tasks.cancel_scope.cancel()
    finally:
        with anyio.CancelScope(shield=True):
            await _stop(process)


async def _read(process: asyncio.subprocess.Process, received: MemoryObjectSendStream[_Received]) -> None:
    """Until its output ends or a line is too long; then the session learns that the connection is closed."""
    assert process.stdout is not None
    async with received:
        with contextlib.suppress(anyio.ClosedResourceError, anyio.BrokenResourceError):  # nobody listens any longer
            while line := await _read_line(process.stdout):
                await received.send(_parse(line))


async def _read_line(stream: asyncio.StreamReader) -> bytes:
    """A line, or nothing at the end and where one is too long."""
    try:
        return await stream.readline()
    except ValueError:
        logger.warning("a command that speaks MCP sent a message that is too long, and is stopped")
        return b""


def _parse(line: bytes) -> _Received:
    try:
        return SessionMessage(jsonrpc_message_adapter.validate_json(line, by_name=False))
    except ValueError as error:
        return error  # the session takes note that this was no message, and goes on


async def _write(
    process: asyncio.subprocess.Process,
    to_send: MemoryObjectReceiveStream[SessionMessage],
    received: MemoryObjectSendStream[_Received],
) -> None:
    assert process.stdin is not None
    try:
        async for message in to_send:
            process.stdin.write(message.message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n")
            await process.stdin.drain()
    except ConnectionError:  # it has closed its input, so nobody will answer
        await received.aclose()


async def _stop(process: asyncio.subprocess.Process) -> None:
    """By the end of its input, then by SIGTERM, then by SIGKILL; children that are left get the last in any case."""
    assert process.stdin is not None
    process.stdin.close()
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), STOP_S)
            break
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
