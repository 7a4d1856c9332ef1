"""What the service tells its operators: Prometheus metrics, a request id in every answer, and one log line a request.

Contents, keys and full paths are never in them: a route is its template, a caller the name of its key. Every
ingress replica counts its own requests.
"""

from __future__ import annotations

import json
import logging
import re
import time
import uuid
from collections.abc import Mapping
from contextlib import AbstractContextManager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger("ray.serve")

REQUEST_ID = "x-request-id"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SENT_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)
_NOT_IN_AN_ID = re.compile(r"[^\w.-]", re.ASCII)
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Telemetry:
    """The metrics of one ingress replica."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "toolmm_requests", "requests answered", ["route", "method", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "toolmm_request_seconds",
            "seconds to the end of an answer",
            ["route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._in_flight = Gauge(
            "toolmm_requests_in_flight", "requests under way, waiting ones included", registry=self.registry
        )
        self._tokens = Counter("toolmm_tokens", "tokens read and written", ["kind"], registry=self.registry)
        self._tool_seconds = Histogram(
            "toolmm_tool_seconds",
            "seconds of a tool's call, waiting included",
            ["tool_id"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._tool_failures = Counter(
            "toolmm_tool_failures", "calls of tools without a result", ["tool_id", "code"], registry=self.registry
        )
        self._asked = Gauge(
            "toolmm_deployment_requests",
            "requests that a deployment was asked and has not answered: its queue and what it works on",
            ["deployment"],
            registry=self.registry,
        )
        self._batch = Gauge(
            "toolmm_batch_size",
            "largest batch since its start, of the replica that answered",
            ["deployment"],
            registry=self.registry,
        )

    def waiting(self, deployment: str) -> AbstractContextManager[None]:
        """While a deployment is asked: its queue and its batches under way, as this ingress sees them."""
        return self._asked.labels(deployment).track_inprogress()

    def count_tokens(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Count what one answer took."""
        self._tokens.labels("prompt").inc(prompt_tokens)
        self._tokens.labels("completion").inc(completion_tokens)

    def count_tool(self, tool_id: str, seconds: float, error: str | None) -> None:
        """Count one call; `error` is the code of its failure, or None."""
        self._tool_seconds.labels(tool_id).observe(seconds)
        if error is not None:
            self._tool_failures.labels(tool_id, error).inc()

    def set_batch_sizes(self, sizes: Mapping[str, int]) -> None:
        """Deployment -> its largest batch."""
        for deployment, size in sizes.items():
            self._batch.labels(deployment).set(size)

    def render(self) -> bytes:
        """All metrics in Prometheus' text form."""
        return generate_latest(self.registry)

    def begin(self) -> None:
        """A request has come."""
        self._in_flight.inc()

    def end(self, route: str, method: str, status: int, seconds: float) -> None:
        """Its answer has gone out, or its client."""
        self._in_flight.dec()
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route).observe(seconds)


class RequestTelemetry:
    """ASGI middleware around everything else: times, counts, names and logs each request."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry, *, is_named_outside: bool) -> None:
        """
        Args:
            app: what answers.
            telemetry: where it is counted.
            is_named_outside: whether a server around this one already puts the request's id into each answer, as Ray
                Serve's do: the client's, or one that they made up and handed on; two would be none.
        """
        self._app = app
        self._telemetry = telemetry
        self._is_named_outside = is_named_outside

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent = dict(scope["headers"]).get(REQUEST_ID.encode(), b"").decode("latin-1")
        request_id = sent if _SENT_ID.fullmatch(sent) else uuid.uuid4().hex
        if self._is_named_outside and sent:  # what the client gets to see, with nothing odd in it
            request_id = _NOT_IN_AN_ID.sub("?", sent[:64])
        start, status = time.perf_counter(), 499  # as long as nothing was answered: the client has gone

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if not self._is_named_outside:
                    named = (REQUEST_ID.encode(), request_id.encode())
                    message = {**message, "headers": [*message.get("headers", ()), named]}
            await send(message)

        self._telemetry.begin()
        try:
            await self._app(scope, receive, send_named)
        finally:
            seconds = time.perf_counter() - start
            route = getattr(scope.get("route"), "path", "other")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._telemetry.end(route, method, status, seconds)
            line = {
                "request_id": request_id,
                "caller": scope.get("state", {}).get("caller", ""),
                "method": method,
                "route": route,
                "status": status,
                "ms": round(seconds * 1e3, 1),
            }
            logger.info(json.dumps(line))


_METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS")
