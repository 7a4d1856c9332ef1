"""The route /mcp: the SDK's streamable HTTP behind the same gate, limits and telemetry as every other route."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.chat.answer import ChatService
from serve.http.access import check_origin
from serve.http.body import check_body
from serve.mcp.server import ToolServer

PATH = "/mcp"


class McpEndpoint:
    """Speaks MCP from the application's start to its end.

    Without sessions, so that any ingress replica answers any request: both the revisions that shake hands and the one
    that does not. Answers are JSON, not events: the SDK's client takes no event over 1 MiB, and media are larger.
    """

    def __init__(self, chat: ChatService) -> None:
        self._chat = chat
        self._app: ASGIApp | None = None

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """While this context is open, requests are answered."""
        sessions = StreamableHTTPSessionManager(
            ToolServer(self._chat).build(),
            json_response=True,
            stateless=True,
            max_request_body_size=self._chat.args.max_body_bytes,
        )
        async with sessions.run():
            self._app = sessions.asgi_app
            try:
                yield
            finally:
                self._app = None

    def add_route(self, api: FastAPI) -> None:
        """Add the route; it is not in the OpenAPI description, since MCP describes itself."""

        # a route of FastAPI's, as the gate is a dependency, which mounted applications do not have. POST alone: there
        # is nothing to GET (no events without a request) and no session to DELETE, and the protocol then wants 405
        @api.post(PATH, include_in_schema=False)
        async def speak(request: Request) -> Response:
            check_origin(request.headers, self._chat.args.cors_origins)
            check_body(request, self._chat.args, ("application/json",))
            if self._app is None:
                raise RuntimeError("the application was not started: /mcp answers within its lifespan")
            return _AsgiResponse(self._app)


class _AsgiResponse(Response):
    """An answer that another ASGI application gives."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__()
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)
