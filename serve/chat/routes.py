"""The routes of chats, tools and artifacts: OpenAI's where it has one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, Path, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ray.exceptions import RayError
from ray.serve.exceptions import DeploymentUnavailableError
from sse_starlette import EventSourceResponse
from starlette.datastructures import UploadFile

from serve.agent.events import describe_artifact
from serve.agent.tool_reply import ToolResult
from serve.artifact_files import ARTIFACT_ID
from serve.chat.answer import ChatService
from serve.chat.decision_answers import Decision
from serve.chat.decisions import TOOK_TOO_LONG, DecisionRequest, decide, parse_decision_request
from serve.chat.idempotency import IdempotencyKey, IdempotentCalls
from serve.chat.schemas import ChatCompletion, ChatRequest, ModelEntry, ModelList, list_models, parse_chat_request
from serve.chat.served_models import no_such_model
from serve.http.body import check_body, read_body
from serve.http.errors import describe_error
from serve.http.json_body import describe_body
from serve.http.methods import is_known
from serve.http.schemas import BODY_ERRORS, RequestError, check_upload_size, describe_errors
from serve.http.telemetry import CONTENT_TYPE

METRICS_TIMEOUT_S = 2.0
_Result = TypeVar("_Result")
_ArtifactId = Annotated[str, Path(json_schema_extra={"pattern": f"^{ARTIFACT_ID.pattern}$"})]


class InvokeRequest(BaseModel):
    """Body of `POST /v1/tools/{tool_id}/invoke`."""

    model_config = ConfigDict(extra="forbid")

    arguments: dict[str, Any] = Field(default={}, description="by the tool's schema; media are artifact ids")


class ArtifactEntry(BaseModel):
    """An artifact as responses show it; `path` is where its data is."""

    id: str
    name: str
    media_type: str
    n_bytes: int
    path: str


class InvokeAnswer(BaseModel):
    """What a tool gave: words, and the file that it made."""

    tool_id: str
    text: str
    artifact: ArtifactEntry | None


def parse_invoke(body: bytes) -> InvokeRequest:
    """Read a call of a tool; `RequestError` where it is none."""
    try:
        return InvokeRequest.model_validate_json(body)
    except ValidationError as error:
        is_json = error.errors(include_url=False, include_context=False)[0]["type"] != "json_invalid"
        raise RequestError(
            'The body is not valid; send {"arguments": {...}} as JSON, by the tool\'s schema.',
            code="bad_field" if is_json else "bad_json",
        ) from error


def describe_result(tool_id: str, result: ToolResult) -> InvokeAnswer:
    """What a tool gave, as responses show it."""
    artifact = None if result.artifact is None else ArtifactEntry(**describe_artifact(result.artifact))
    return InvokeAnswer(tool_id=tool_id, text=result.text, artifact=artifact)


def add_chat_routes(api: FastAPI, chat: ChatService, calls: IdempotentCalls) -> None:
    """Add the routes to the application; `chat` is what they do, `calls` those that bear a key."""
    created_s = int(time.time())

    @api.post(
        "/v1/chat/completions",
        response_model=ChatCompletion,
        responses={
            200: {"content": {"text/event-stream": {"schema": {"description": "OpenAI's chunks, then [DONE]"}}}},
            **describe_errors(404, 507, *BODY_ERRORS),
        },
        openapi_extra=describe_body(ChatRequest),
    )
    async def complete(request: Request) -> Response:
        wanted = parse_chat_request(await read_body(request, chat.args, ("application/json",)))
        async with asyncio.timeout(chat.args.request_timeout_s):
            answer = await chat.complete(wanted, request.state.caller)
        if isinstance(answer, ChatCompletion):
            return JSONResponse(answer.to_json())
        return EventSourceResponse(_guarded(request, answer), sep="\n")

    @api.post(
        "/v1/decisions", responses=describe_errors(404, 507, *BODY_ERRORS), openapi_extra=describe_body(DecisionRequest)
    )
    async def answer_questions(request: Request) -> Decision:
        wanted = parse_decision_request(await read_body(request, chat.args, ("application/json",)))
        try:
            async with asyncio.timeout(chat.args.request_timeout_s):
                return await decide(chat, wanted, request.state.caller)
        except TimeoutError:
            raise RequestError(TOOK_TOO_LONG, 504, "timeout", "questions") from None

    @api.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **describe_errors()},
    )
    async def metrics() -> Response:
        try:
            state = await asyncio.wait_for(chat.describe_predictor(), METRICS_TIMEOUT_S)
        except (TimeoutError, RayError, DeploymentUnavailableError):
            state = {}  # a scrape must tell of the rest also where the model is down
        chat.telemetry.set_batch_sizes({"Predictor": state["largest_batch"]} if state else {})
        return Response(chat.telemetry.render(), media_type=CONTENT_TYPE)

    def known_models() -> ModelList:
        return list_models(map(chat.models.find, chat.models.names), created_s)

    @api.get("/v1/models/", include_in_schema=False)  # else the next route's, with no name
    @api.get("/v1/models", responses=describe_errors())
    async def models() -> ModelList:
        return known_models()

    @api.get("/v1/models/{model_id:path}", responses=describe_errors(404, 422))
    async def model(model_id: str) -> ModelEntry:
        found = next((entry for entry in known_models().data if entry.id == model_id), None)
        if found is None:
            raise no_such_model(model_id)
        return found

    @api.post(
        "/v1/tools/{tool_id:path}/invoke",
        responses=describe_errors(404, *BODY_ERRORS),
        openapi_extra=describe_body(InvokeRequest),
    )
    async def invoke(tool_id: str, request: Request, idempotency_key: IdempotencyKey = None) -> InvokeAnswer:
        wanted = parse_invoke(await read_body(request, chat.args, ("application/json",)))
        caller, asked = request.state.caller, ["invoke", tool_id, wanted.arguments]
        call = partial(chat.invoke, tool_id, wanted.arguments, caller)
        return describe_result(tool_id, await calls.once(caller, idempotency_key, asked, call))

    async def in_time(work: Callable[..., _Result], *args: object) -> _Result:
        """What the store does; a bucket may take for ever."""
        async with asyncio.timeout(chat.args.request_timeout_s):
            return await asyncio.to_thread(work, *args)

    @api.post("/v1/artifacts", responses=describe_errors(507, *BODY_ERRORS), openapi_extra=_upload_body())
    async def upload(request: Request) -> ArtifactEntry:
        check_body(request, chat.args, ("multipart/form-data",))
        async with request.form(max_files=1, max_fields=4) as form:
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise RequestError("The form has no file; send it in the field 'file'.", code="bad_field", param="file")
            check_upload_size(file.size or 0, chat.args.max_upload_bytes, "file")
            data = await file.read()
        store = chat.store.of(request.state.caller)
        artifact = await in_time(store.put, data, file.content_type or "", file.filename or "")
        return ArtifactEntry(**describe_artifact(artifact))

    @api.get(
        "/v1/artifacts/{artifact_id}",
        response_class=Response,
        responses={
            200: {"content": _media_content()},
            206: {"description": "the part that the header Range names", "content": _media_content()},
            304: {"description": "the header If-None-Match names what there is"},
            416: {"description": "the file has no such part"},
            **describe_errors(404, 422, 504),
        },
    )
    async def download(
        artifact_id: _ArtifactId,
        request: Request,
    ) -> Response:
        store = chat.store.of(request.state.caller)
        artifact, path = await in_time(store.locate, artifact_id)
        headers = artifact.headers
        if is_known(request.headers.get("if-none-match", ""), headers["ETag"]):
            return Response(status_code=304, headers={name: headers[name] for name in ("ETag", "Cache-Control")})
        if path is not None:
            return FileResponse(path, headers=headers)
        _, data = await in_time(store.open, artifact_id)  # from a bucket, whole whatever was asked for
        return Response(data, headers=headers)

    @api.delete(
        "/v1/artifacts/{artifact_id}",
        status_code=204,
        response_class=Response,
        responses=describe_errors(404, 422, 504),
    )
    async def delete(artifact_id: _ArtifactId, request: Request) -> Response:
        await in_time(chat.store.of(request.state.caller).delete, artifact_id)
        return Response(status_code=204)


async def _guarded(request: Request, events: AsyncIterator[str]) -> AsyncIterator[str]:
    """The data of a stream's events; an error becomes the last one, on which OpenAI's client raises."""
    try:
        async for event in events:
            yield event
    except Exception as error:  # noqa: BLE001  (whatever it is, it is described, and logged where nobody foresaw it)
        yield describe_error(request, error)[1].model_dump_json()


def _media_content() -> dict[str, Any]:
    return {f"{kind}/*": {"schema": {"type": "string", "format": "binary"}} for kind in ("image", "audio", "video")}


def _upload_body() -> dict[str, Any]:
    form = {
        "type": "object",
        "required": ["file"],
        "properties": {"file": {"type": "string", "format": "binary"}},
    }
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}}}
