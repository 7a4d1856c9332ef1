"""The routes of OpenAI's Responses API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from sse_starlette import EventSourceResponse

from serve.chat.answer import ChatService
from serve.chat.response_schemas import DeletedResponse, ResponseObject, ResponseRequest
from serve.chat.response_stream import write_failure
from serve.chat.responses import ResponseService
from serve.http.body import read_body
from serve.http.errors import describe_error
from serve.http.json_body import describe_body, parse_body
from serve.http.schemas import BODY_ERRORS, describe_errors


def add_response_routes(api: FastAPI, chat: ChatService) -> None:
    """Add the routes to the application; a response belongs to the key that asked for it."""
    service = ResponseService(chat)

    @api.post(
        "/v1/responses",
        response_model=ResponseObject,
        responses={
            200: {"content": {"text/event-stream": {"schema": {"description": "OpenAI's events of a response"}}}},
            **describe_errors(404, 507, *BODY_ERRORS),
        },
        openapi_extra=describe_body(ResponseRequest),
    )
    async def create(request: Request) -> Response:
        wanted = parse_body(ResponseRequest, await read_body(request, chat.args, ("application/json",)))
        async with asyncio.timeout(chat.args.request_timeout_s):
            answer = await service.create(wanted, request.state.caller)
        if isinstance(answer, ResponseObject):
            return JSONResponse(answer.to_json())
        return EventSourceResponse(_guarded(request, answer), sep="\n")

    @api.get("/v1/responses/{response_id}", response_model=ResponseObject, responses=describe_errors(404, 422))
    async def retrieve(response_id: str, request: Request) -> Response:
        return JSONResponse(service.find(response_id, request.state.caller).to_json())

    @api.delete("/v1/responses/{response_id}", responses=describe_errors(404, 422))
    async def delete(response_id: str, request: Request) -> DeletedResponse:
        service.forget(response_id, request.state.caller)
        return DeletedResponse(id=response_id)


async def _guarded(request: Request, events: AsyncIterator[dict[str, str]]) -> AsyncIterator[dict[str, str]]:
    """The events; an error becomes the last one."""
    number = 0
    try:
        async for event in events:
            yield event
            number += 1
    except Exception as error:  # noqa: BLE001  (whatever it is, it is described, and logged where nobody foresaw it)
        yield write_failure(describe_error(request, error)[1].error, number)
