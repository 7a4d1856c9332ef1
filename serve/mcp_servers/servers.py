"""All of the servers that `mcp_servers` names: their tools at the start, and calls of these."""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Mapping
from functools import partial
from types import TracebackType
from typing import Any

from mcp import Client
from mcp.shared.exceptions import MCPError
from mcp.types import CONNECTION_CLOSED, INVALID_REQUEST, CallToolRequest, CallToolRequestParams, CallToolResult
from pydantic import ValidationError

from data_pipeline.errors import InputError
from serve.agent.tool_reply import ToolReply
from serve.artifact_files import ARTIFACT_ID
from serve.artifacts import CallerArtifacts
from serve.config import McpServer
from serve.http.schemas import RequestError
from serve.mcp_servers.connection import Connection, open_client
from serve.mcp_servers.results import MAX_FAULT_CHARS, store_result
from serve.mcp_servers.tools import RemoteTool, one_line, read_tool

logger = logging.getLogger("ray.serve")

LIST_TIMEOUT_S = 120.0  # of connecting and listing: npx and uvx fetch a package first
MAX_TOOLS = 1000  # of one server
_ARTIFACT = "artifact:"
_BROKEN = (CONNECTION_CLOSED, INVALID_REQUEST)  # the latter where a server has forgotten the session


class McpServers:
    """Connected from `async with` to its end. What the servers say is passed on as data, and believed in nothing."""

    def __init__(self, servers: Mapping[str, McpServer], timeout_s: float, max_answer_bytes: int) -> None:
        """Connect to nothing yet.

        Args:
            servers: their entries in the config, by name.
            timeout_s: of one call.
            max_answer_bytes: of one answer, its media in base64; a larger one is not read to its end.
        """
        self.tools: dict[str, RemoteTool] = {}
        self._timeout_s = timeout_s
        self._connections = {
            name: Connection(partial(open_client, server, max_answer_bytes)) for name, server in servers.items()
        }

    async def __aenter__(self) -> McpServers:
        """Connect and list; a server that does not answer in time is warned of and left out until the next start."""
        for tools in await asyncio.gather(*map(self._list, self._connections)):
            self.tools.update(tools)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.gather(*(connection.close() for connection in self._connections.values()))

    async def call(self, tool: RemoteTool, arguments: Mapping[str, Any], store: CallerArtifacts) -> ToolReply:
        """Run a tool on its server; once, where it may have side effects, and else again where the connection broke.

        Args:
            tool: one of `tools`.
            arguments: by its schema, media as ids of artifacts. A text `artifact:<id>` goes as that artifact's data.
            store: where media come from and go, of the caller.

        Returns:
            its result, or in words why there is none.
        """
        try:
            sent = await asyncio.to_thread(_write_arguments, tool, arguments, store)
            async with asyncio.timeout(self._timeout_s):
                result = await self._ask(tool, sent)
        except TimeoutError:
            words = f"{tool.tool_id} took longer than {self._timeout_s:g} s; its server may still be at it."
            return ToolReply(error="timeout", message=words)
        except RequestError as error:  # an artifact that is gone
            return ToolReply(error="bad_media", message=error.message)
        except InputError as error:
            return ToolReply(error="bad_arguments", message=str(error))
        except _BrokenError as error:
            return ToolReply(error="interrupted", message=str(error))
        except MCPError as error:
            words = one_line(error.message, MAX_FAULT_CHARS)
            return ToolReply(error="failed", message=f"The server of {tool.tool_id} refused the call: {words}")
        except ValidationError:
            words = f"The server of {tool.tool_id} answered what is no result of a tool."
            return ToolReply(error="failed", message=words)
        return await asyncio.to_thread(store_result, tool.tool_id, result, store)

    async def _ask(self, tool: RemoteTool, arguments: dict[str, Any]) -> CallToolResult:
        attempts = 1 if tool.has_side_effects else 2
        for attempt in range(1, attempts + 1):
            client = await self._connect(tool)
            request = CallToolRequest(params=CallToolRequestParams(name=tool.remote_name, arguments=arguments))
            try:
                # not client.call_tool: it checks the result by the server's own schema, whose patterns may take forever
                return await client.session.send_request(request, CallToolResult)
            except MCPError as error:
                if error.code not in _BROKEN:
                    raise
                self._connections[tool.server].drop(client)
                if attempt == attempts:
                    words = one_line(error.message, MAX_FAULT_CHARS)
                    raise _BrokenError(
                        f"The connection to the server of {tool.tool_id} broke ({words}); whether the tool did its "
                        "work is not known: look before you call it again."
                    ) from error
        raise AssertionError("the last attempt returns or raises")

    async def _connect(self, tool: RemoteTool) -> Client:
        try:
            return await self._connections[tool.server].client()
        except Exception as error:  # whatever is wrong with a server, the call is told so
            logger.warning("MCP server %s: %s", tool.server, _describe(error))
            raise _BrokenError(f"The server of {tool.tool_id} is not there now; nothing was done.") from error

    async def _list(self, name: str) -> dict[str, RemoteTool]:
        tools: dict[str, RemoteTool] = {}
        try:
            async with asyncio.timeout(LIST_TIMEOUT_S):
                client = await self._connections[name].client()
                cursor = None
                while True:
                    page = await client.list_tools(cursor=cursor, cache_mode="bypass")
                    for listed in page.tools:
                        try:
                            tool = read_tool(name, listed, self._timeout_s)
                        except InputError as error:
                            logger.warning("MCP server %s: a tool is left out: %s", name, error)
                            continue
                        tools[tool.tool_id] = tool
                    cursor = page.next_cursor
                    if cursor is None:
                        break
                    if len(tools) >= MAX_TOOLS:
                        logger.warning("MCP server %s: tools beyond %d are left out", name, len(tools))
                        break
        except Exception as error:  # noqa: BLE001  (whatever is wrong with a server, the service starts)
            logger.warning("MCP server %s: %s; the service starts without its tools", name, _describe(error))
            await self._connections[name].close()
            return {}
        return tools


def _write_arguments(tool: RemoteTool, arguments: Mapping[str, Any], store: CallerArtifacts) -> dict[str, Any]:
    """The arguments as its server takes them; `InputError` where one is missing or nothing is to be sent."""
    missing = [name for name in tool.schema.get("required", []) if name not in arguments]
    if missing:
        raise InputError(f"tool {tool.tool_id} needs the argument {missing[0][:80]!r}; add it.")
    return {name: _write_value(tool, name, value, store) for name, value in arguments.items()}


def _write_value(tool: RemoteTool, name: str, value: Any, store: CallerArtifacts) -> Any:
    if not isinstance(value, str):
        return value
    artifact_id = value.removeprefix(_ARTIFACT)
    is_named = value != artifact_id or name in tool.media
    if not is_named or not ARTIFACT_ID.fullmatch(artifact_id):
        return value
    artifact, data = store.open(artifact_id)
    text = base64.b64encode(data).decode("ascii")
    return text if name in tool.base64_media else f"data:{artifact.media_type};base64,{text}"


class _BrokenError(Exception):
    """A server that is gone."""


def _describe(error: Exception) -> str:
    """In a few words, and none of a stack trace."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, TimeoutError):
        return f"no answer within {LIST_TIMEOUT_S:g} s"
    return one_line(str(error), MAX_FAULT_CHARS) or type(error).__name__
