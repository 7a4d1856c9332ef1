"""Every error as one sentence with its HTTP status, in OpenAI's form or JSON-RPC's: no stack trace, nothing about this
machine."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from data_pipeline.errors import InputError, MediaError
from serve.http.schemas import ErrorAnswer, ErrorBody, RequestError
from serve.tools.spec import ErrorCode, ToolError

logger = logging.getLogger("ray.serve")

TOOL_ERROR_STATUS: dict[ErrorCode, int] = {
    "bad_arguments": 400,
    "bad_media": 422,
    "timeout": 504,
    "out_of_memory": 422,
    "weights_not_available": 503,
    "interrupted": 502,
    "failed": 422,
}
_RPC_INVALID_REQUEST, _RPC_INTERNAL_ERROR = -32600, -32603
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_Answer = Callable[[Request, Exception], Awaitable[JSONResponse]]


def add_error_handlers(api: FastAPI, rpc_paths: Collection[str] = ()) -> None:
    """Let the application answer every error as `ErrorAnswer`; at `rpc_paths`, whose clients speak it, as JSON-RPC.

    Other middleware comes after this one.
    """

    async def answer(request: Request, error: Exception) -> JSONResponse:
        status, told = describe_error(request, error)
        headers = dict(getattr(error, "headers", None) or {})
        if status in (429, 503):
            headers.setdefault("Retry-After", "1")
        body = _build_rpc_error(status, told) if request.url.path in rpc_paths else told.model_dump()
        return JSONResponse(body, status_code=status, headers=headers)

    for error_type in (
        HTTPException,
        InputError,
        ToolError,
        BackPressureError,
        DeploymentUnavailableError,
        RayActorError,
        TimeoutError,
    ):
        api.add_exception_handler(error_type, answer)
    api.add_middleware(UnforeseenErrors, answer=answer)


class UnforeseenErrors:
    """ASGI middleware inside all others: answers what no handler knows, so that this answer too is counted, bears its
    id, and can be read by the web pages that may ask."""

    def __init__(self, app: ASGIApp, answer: _Answer) -> None:
        self._app = app
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = False

        async def send_on(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, send_on)
        except ClientDisconnect:
            return  # gone before its body was whole: nobody to answer, and no fault of the service
        except Exception as error:
            if has_begun or scope["type"] != "http":
                raise
            response = await self._answer(Request(scope), error)
            await response(scope, receive, send)


def build_error(status: int, message: str, code: str, param: str | None = None) -> ErrorAnswer:
    """An error in OpenAI's form; its type follows from the HTTP status."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return ErrorAnswer(error=ErrorBody(message=message, type=kind, param=param, code=code))


def describe_error(request: Request, error: Exception) -> tuple[int, ErrorAnswer]:
    """Status and answer; what nobody foresaw is logged, and told as an error of the service."""
    status, code, param, message = _find_words(request, error)
    if status == 500:
        logger.error("request failed: %s %s", request.method, request.url.path, exc_info=error)
    return status, build_error(status, message, code, param)


def _build_rpc_error(status: int, answer: ErrorAnswer) -> dict[str, Any]:
    """JSON-RPC 2.0 (section 5.1) has numbers for its own faults alone; what went wrong stands beside, in our words."""
    code = _RPC_INVALID_REQUEST if status < 500 else _RPC_INTERNAL_ERROR
    told = answer.error.model_dump()
    return {"jsonrpc": "2.0", "id": None, "error": {"code": code, "message": told.pop("message"), "data": told}}


def _find_words(request: Request, error: Exception) -> tuple[int, str, str | None, str]:
    """Status, code, param and message."""
    path = request.url.path[:200]
    match error:
        case RequestError():
            return error.status, error.code, error.param, error.message
        case ToolError():
            return TOOL_ERROR_STATUS[error.code], error.code, None, error.message
        case MediaError():
            return 422, "bad_media", "media", str(error)
        case InputError():
            return 400, "bad_request", None, str(error)
        case HTTPException(status_code=404):
            return 404, "not_found", None, f"There is no {path} here; see /openapi.json."
        case HTTPException(status_code=405):
            return 405, "bad_method", None, f"{path} does not take {request.method}; see /openapi.json."
        case HTTPException():
            return error.status_code, "bad_request", None, str(error.detail)
        case BackPressureError():
            return 503, "overloaded", None, "Too many requests are waiting; try again in a moment."
        case DeploymentUnavailableError() | RayActorError():
            return 503, "unavailable", None, "The model is not available right now; try again in a moment."
        case TimeoutError():
            return 504, "timeout", None, "The request took too long; try again, or send a smaller medium."
    return 500, "internal_error", None, "The service failed on this request; the reason is in its log."
