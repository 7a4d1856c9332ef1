"""HEAD and OPTIONS wherever there is something to GET or to POST, and what a client has already (RFC 9110, sections
9.3.2, 9.3.7 and 13.1.2)."""

from __future__ import annotations

from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class OtherMethods:
    """ASGI middleware: answers HEAD as GET without its body, and OPTIONS with the methods that a path takes.

    OPTIONS needs no API key: browsers send none with it, and it tells no more than this source does.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method = scope["method"] if scope["type"] == "http" else ""
        if method not in ("HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        methods = _find_methods(scope)
        if method == "OPTIONS" and methods:
            await Response(status_code=204, headers={"Allow": ", ".join(methods)})(scope, receive, send)
        elif method == "HEAD" and "GET" in methods:
            await self._answer_head(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _answer_head(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_head(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        # a copy, as the server looks at its own scope to see whether a body belongs to the answer
        inner = {**scope, "method": "GET"}
        try:
            await self._app(inner, receive, send_head)
        finally:
            scope.update({**inner, "method": "HEAD"})  # which route it was, and who asked


def is_known(if_none_match: str, etag: str) -> bool:
    """Whether the header If-None-Match names what there is, so that it need not be sent again.

    Args:
        if_none_match: the header's value, "" where there is none.
        etag: the strong validator of what there is, in its quotes.
    """
    named = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return named == ["*"] or etag in named


def _find_methods(scope: Scope) -> list[str]:
    """What the path takes; [] where there is nothing."""
    found: set[str] = set()
    for route in scope["app"].routes:
        if isinstance(route, Route) and route.matches(scope)[0] != Match.NONE:
            found |= route.methods or set()
    if "GET" in found:
        found.add("HEAD")
    return sorted({*found, "OPTIONS"}) if found else []
