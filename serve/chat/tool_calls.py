"""Calls of tools: on the deployment that runs them, or on another's server, within their time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from ray.exceptions import RayActorError

from serve.agent.tool_reply import LOCAL_TOOLS, MODEL_TOOLS, ToolReply, ToolResult
from serve.artifacts import ArtifactStore
from serve.config import ServeArgs
from serve.engine.calls import ask
from serve.http.telemetry import Telemetry
from serve.mcp_servers.servers import McpServers
from serve.mcp_servers.tools import ID_PREFIX, RemoteTool
from serve.tools.spec import ToolError, ToolSpec


class ToolCalls:
    """Runs tools; one for all callers.

    Attributes:
        servers: of others, that run `RemoteTool`s; None before they are connected.
    """

    def __init__(
        self, args: ServeArgs, telemetry: Telemetry, store: ArtifactStore, local_tools: Any, model_tools: Any
    ) -> None:
        """`local_tools` and `model_tools` are deployment handles."""
        self._args = args
        self._telemetry = telemetry
        self._store = store
        self._hosts = {LOCAL_TOOLS: local_tools, MODEL_TOOLS: model_tools}
        self.servers: McpServers | None = None

    async def run(self, spec: ToolSpec, arguments: Mapping[str, Any], caller: str) -> ToolResult:
        """Run a tool on a caller's artifacts.

        Raises:
            ToolError: it gave no result.
            TimeoutError: nobody answered in the time of a request and of the tool's own limits together.
        """
        deployment = MODEL_TOOLS if spec.method == "model" else LOCAL_TOOLS
        if isinstance(spec, RemoteTool):
            deployment = f"{ID_PREFIX}{spec.server}"
        tool_s = min(spec.timeout_s, self._args.tool_timeout_s)
        if spec.method == "model":
            tool_s += self._args.tool_load_timeout_s
        start, code = time.perf_counter(), "unavailable"
        try:
            with self._telemetry.waiting(deployment):
                async with asyncio.timeout(self._args.request_timeout_s + tool_s):
                    reply = await self._ask(spec, deployment, arguments, caller)
            code = reply.error
        except TimeoutError:
            code = "timeout"
            raise
        finally:
            self._telemetry.count_tool(spec.tool_id, time.perf_counter() - start, code)
        return reply.unpack()

    async def _ask(self, spec: ToolSpec, deployment: str, arguments: Mapping[str, Any], caller: str) -> ToolReply:
        """A call of a tool without side effects may be made once more where its replica dies; one with them may not."""
        if isinstance(spec, RemoteTool):
            assert self.servers is not None
            return await self.servers.call(spec, arguments, self._store.of(caller))
        method = self._hosts[deployment].invoke
        if not spec.has_side_effects:
            return await ask(method, spec.tool_id, dict(arguments), caller, attempts=2)  # it may be what kills them
        try:
            return await ask(method, spec.tool_id, dict(arguments), caller, attempts=1)
        except RayActorError:
            raise ToolError(
                "interrupted",
                "The process that ran the tool died; whether the tool did its work is not known: look before you call "
                "it again.",
            ) from None
