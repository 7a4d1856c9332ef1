"""Errors in OpenAI's form. Which error leads to which answer: tests/serve/deployments/test_http.py."""

from __future__ import annotations

import asyncio

from fastapi import FastAPI, Request
from starlette.types import Message

from serve.http.errors import add_error_handlers, build_error
from serve.http.telemetry import RequestTelemetry, Telemetry


def test_error_types_follow_the_status() -> None:
    assert build_error(401, "no", "invalid_api_key").model_dump() == {
        "error": {"message": "no", "type": "authentication_error", "param": None, "code": "invalid_api_key"}
    }
    kinds = {status: build_error(status, "", "").error.type for status in (400, 404, 429, 500, 503)}
    assert list(kinds.values()) == ["invalid_request_error"] * 2 + ["rate_limit_error"] + ["server_error"] * 2


def test_a_client_that_goes_before_its_body_is_no_fault() -> None:
    api, telemetry, sent = FastAPI(), Telemetry(), []
    add_error_handlers(api)
    api.add_middleware(RequestTelemetry, telemetry=telemetry, is_named_outside=False)

    @api.post("/read")
    async def read(request: Request) -> str:
        return (await request.body()).decode()

    messages: list[Message] = [
        {"type": "http.request", "body": b"{", "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> Message:
        return messages.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/read", "query_string": b"", "headers": []}
    asyncio.run(api(scope, receive, send))
    assert sent == []
    counted = [line for line in telemetry.render().decode().splitlines() if line.startswith("toolmm_requests_total")]
    assert counted == ['toolmm_requests_total{method="POST",route="/read",status="499"} 1.0']
