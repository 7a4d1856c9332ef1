"""MCP's requests: `tools/list` in pages, `tools/call` by the way of every other call, and a tool that finds tools."""

from __future__ import annotations

import asyncio
import json
from typing import Any, cast

from fastapi import Request
from mcp.server import Server, ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp.types import (
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
    Tool,
    ToolAnnotations,
)
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serve.chat.answer import ChatService
from serve.http.errors import describe_error
from serve.http.schemas import RequestError
from serve.mcp.content import build_content, build_input_schema, store_arguments
from serve.tools.names import name_tools
from serve.tools.spec import ToolSpec

SEARCH = "tool_search"
PAGE_TOOLS = 50
MAX_FOUND = 50
INSTRUCTIONS = (
    "Tools for pictures, sounds and videos. There are many: ask tool_search for those that suit a task, then call them "
    "by the names that it gives. Media go in as data URLs or base64; a result's artifact:<id> goes into the next call."
)


class SearchArguments(BaseModel):
    """What `tool_search` takes."""

    model_config = ConfigDict(extra="forbid")

    query: str = Field(description="in words, what the tool should do")
    k: int = Field(8, ge=1, le=MAX_FOUND, description="how many tools to name, the best first", strict=True)


class ToolServer:
    """Answers MCP's requests; what they ask for, `chat` does."""

    def __init__(self, chat: ChatService) -> None:
        """Take the tools that the service has now; those of `McpServers` must have been added before."""
        self._chat = chat
        self._ids = name_tools(chat.specs, reserved=(SEARCH,))
        self._names = {tool_id: name for name, tool_id in self._ids.items()}
        tools = [_describe_search(), *(self._describe(chat.specs[tool_id]) for tool_id in self._ids.values())]
        self._tools = {tool.name: tool for tool in tools}

    def build(self) -> Server:
        """The SDK's server over these handlers."""
        return Server(
            "toolmm",
            instructions=INSTRUCTIONS,
            on_list_tools=self.list_tools,
            on_call_tool=self.call_tool,
            get_tool_input_schema=self._find_schema,
        )

    async def list_tools(self, context: ServerRequestContext, params: PaginatedRequestParams | None) -> ListToolsResult:
        """A page of the tools; its cursor is the number of the page's first tool.

        Raises:
            MCPError: a cursor that no page has given.
        """
        cursor = None if params is None else params.cursor
        starts = {str(start): start for start in range(0, len(self._tools), PAGE_TOOLS)}
        if cursor is not None and cursor not in starts:
            raise MCPError(INVALID_PARAMS, f"The cursor {cursor[:40]!r} is none that tools/list gave; list anew.")
        start = 0 if cursor is None else starts[cursor]
        following = str(start + PAGE_TOOLS)
        return ListToolsResult(
            tools=list(self._tools.values())[start : start + PAGE_TOOLS],
            next_cursor=following if following in starts else None,
        )

    async def call_tool(self, context: ServerRequestContext, params: CallToolRequestParams) -> CallToolResult:
        """Run a tool. Whatever goes wrong in it is a result with one sentence, which the model behind a client reads.

        Raises:
            MCPError: there is no such tool.
        """
        if params.name not in self._tools:
            raise MCPError(INVALID_PARAMS, f"There is no tool {params.name[:80]!r}; tools/list and {SEARCH} name them.")
        try:
            if params.name == SEARCH:
                return await self._search(params.arguments or {})
            caller = cast(Request, context.request).state.caller  # there is one: this is HTTP, behind the gate
            return await self._invoke(self._ids[params.name], params.arguments or {}, caller)
        except Exception as error:  # noqa: BLE001  (it is described, and logged where nobody foresaw it)
            _, answer = describe_error(cast(Request, context.request), error)
            return CallToolResult(content=[TextContent(text=answer.error.message)], is_error=True)

    async def _invoke(self, tool_id: str, arguments: dict[str, Any], caller: str) -> CallToolResult:
        chat, store = self._chat, self._chat.store.of(caller)
        stored = await asyncio.to_thread(
            store_arguments, chat.specs[tool_id], arguments, store, chat.args.max_upload_bytes
        )
        result = await chat.invoke(tool_id, stored, caller)
        data = None
        if result.artifact is not None:
            _, data = await asyncio.to_thread(store.open, result.artifact.id)
        return CallToolResult(content=await asyncio.to_thread(build_content, result, data))

    async def _search(self, arguments: dict[str, Any]) -> CallToolResult:
        try:
            wanted = SearchArguments.model_validate(arguments)
        except ValidationError as error:
            fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
            name = ".".join(map(str, fault["loc"]))
            raise RequestError(
                f"{SEARCH}: {name!r} is wrong: {fault['msg']}; it takes query, in words, and k, 1 to {MAX_FOUND}.",
                code="bad_field",
                param=name,
            ) from error
        async with asyncio.timeout(self._chat.args.request_timeout_s):
            specs = await self._chat.search_tools(wanted.query, wanted.k)
        tools = [self._tools[self._names[spec.tool_id]] for spec in specs]
        found = {"tools": [tool.model_dump(mode="json", by_alias=True, exclude_none=True) for tool in tools]}
        return CallToolResult(content=[TextContent(text=json.dumps(found))], structured_content=found)

    def _find_schema(self, name: str) -> dict[str, Any] | None:
        tool = self._tools.get(name)
        return None if tool is None else tool.input_schema

    def _describe(self, spec: ToolSpec) -> Tool:
        return Tool(
            name=self._names[spec.tool_id],
            title=spec.tool_id,
            description=spec.description,
            input_schema=build_input_schema(spec),
            annotations=ToolAnnotations(
                read_only_hint=not spec.has_side_effects, idempotent_hint=not spec.has_side_effects
            ),
        )


def _describe_search() -> Tool:
    return Tool(
        name=SEARCH,
        title="Find tools",
        description="Names the tools of this service that suit a task, with what each does and takes: instead of "
        "loading all of them.",
        input_schema=SearchArguments.model_json_schema(),
        output_schema={
            "type": "object",
            "properties": {"tools": {"type": "array", "items": {"type": "object"}}},
            "required": ["tools"],
        },
        annotations=ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False),
    )
