"""The deployment that speaks HTTP: the routes of selections, the catalogue and health beside those of chats."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Collection, Mapping
from contextlib import asynccontextmanager
from contextvars import Context
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse
from ray import serve as ray_serve
from ray.serve.schema import DeploymentStatus

from data_pipeline.records.catalog import UNKNOWN_TOOL_ID, Tool
from serve.artifacts import sweeping
from serve.chat.answer import ChatService
from serve.chat.idempotency import IdempotentCalls
from serve.chat.job_routes import JobRoutes
from serve.chat.reading_ahead import reading_ahead
from serve.chat.response_routes import add_response_routes
from serve.chat.routes import add_chat_routes
from serve.chat.selection import Selector
from serve.chat.served_models import ServedModels
from serve.config import ServeArgs
from serve.decoding.decoder import shared_decoder
from serve.engine.calls import ask
from serve.engine.messages import ServedModel
from serve.http.access import add_cors, build_gate
from serve.http.body import BodyLimit, SelectInput, read_select_input
from serve.http.errors import add_error_handlers
from serve.http.methods import OtherMethods
from serve.http.schemas import (
    BODY_ERRORS,
    Health,
    RankedToolEntry,
    RequestError,
    SelectAnswer,
    SelectRequest,
    Timing,
    ToolEntry,
    ToolList,
    check_k,
    describe_errors,
)
from serve.http.telemetry import RequestTelemetry, Telemetry
from serve.mcp.routes import PATH as MCP_PATH
from serve.mcp.routes import McpEndpoint
from serve.mcp_servers.servers import McpServers
from serve.page.routes import add_page_routes
from serve.tools.spec import ToolSpec

logger = logging.getLogger("ray.serve")

HEALTH_TIMEOUT_S = 5.0
FAULTY = (DeploymentStatus.UNHEALTHY, DeploymentStatus.DEPLOY_FAILED)
HEALTH_AGE_S = 1.0  # how long an answer stands: the route needs no key, and each answer costs two calls


class SelectionService:
    """What the routes do, apart from HTTP. `predictor` and `encoder` are deployment handles."""

    def __init__(self, args: ServeArgs, selector: Selector, predictor: Any, encoder: Any) -> None:
        self.args = args
        self._models = selector.models
        self._selector = selector
        self._predictor = predictor
        self._encoder = encoder
        self._health: asyncio.Task[Health] | None = None
        self._health_s = float("-inf")

    async def select(self, question: SelectInput) -> SelectAnswer:
        """Rank the tools for one question.

        Raises:
            RequestError, MediaError: the request is at fault.
        """
        start = time.perf_counter()
        model = self._models.find(question.model or self.args.model_name)
        k = check_k(question.k, self.args.top_k, len(model.catalog))
        if question.data is None and question.modality is not None:
            raise RequestError("A modality is given, but no medium; attach one.", code="bad_field", param="modality")
        selection = await self._selector.select(
            model.name,
            question.instruction,
            k,
            question.data,
            question.modality,
            any_modality=question.any_modality,
        )
        ranking, medium = selection.ranking, selection.medium
        return SelectAnswer(
            tools=[RankedToolEntry(probability=probability, **vars(tool)) for tool, probability in ranking.tools[:k]],
            abstained=ranking.tools[0][0].tool_id == UNKNOWN_TOOL_ID,
            p_unknown=next((p for tool, p in ranking.tools if tool.tool_id == UNKNOWN_TOOL_ID), None),
            instruction_cut=ranking.is_instruction_cut,
            modality="text" if medium is None else medium.modality,  # pyright: ignore[reportArgumentType]
            media_cached=medium is not None and medium.cached,
            model=model.name,
            bundle_revision=ranking.revision,
            timing=Timing(
                media_ms=selection.media_s * 1e3,
                predict_ms=selection.predict_s * 1e3,
                total_ms=(time.perf_counter() - start) * 1e3,
            ),
        )

    def tools(self, specs: Mapping[str, ToolSpec], ready: Collection[str], model_name: str | None = None) -> ToolList:
        """A model's catalogue, by default the main model's, and what else can be run.

        Args:
            specs: the tools that this service runs, by id.
            ready: ids of those that can run now.
            model_name: a name of `GET /v1/models`.
        """
        model = self._models.find(model_name or self.args.model_name)
        others = [_describe_spec(spec, ready) for tool_id, spec in specs.items() if tool_id not in model.catalog]
        return ToolList(
            tools=[_describe_tool(tool, specs.get(tool.tool_id), ready) for tool in model.catalog],
            others=others,
            catalog_sha256=model.catalog.content_hash,
            bundle_revision=model.revision,
        )

    async def health(self) -> Health:
        """Ask a replica of each deployment; "ok" only when both answer within a few seconds. One answer serves whoever
        asks within `HEALTH_AGE_S`. Where there may be no replica, none is asked: the question would start one."""
        is_old = time.monotonic() - self._health_s > HEALTH_AGE_S
        if self._health is None or (self._health.done() and is_old):
            # of no request: Ray Serve ends what a request has begun when its client goes, and others wait for it too
            asking = asyncio.get_running_loop().create_task(self._ask_health(), context=Context())
            self._health, self._health_s = asking, time.monotonic()
        return await asyncio.shield(self._health)  # who leaves does not end it for the others

    async def _ask_health(self) -> Health:
        ask_of = _ask_replica if self.args.min_replicas else _ask_serve
        (predictor, said), (encoder, _) = await asyncio.gather(
            _describe(ask_of(self._predictor)), _describe(ask_of(self._encoder))
        )
        if said and said["revisions"] != self._models.revisions:
            await self._models.refresh()
        return Health(
            status="ok" if predictor == encoder == "ok" else "unavailable",
            predictor=predictor,
            encoder=encoder,
            models=self._models.revisions,
        )


def _describe_tool(tool: Tool, spec: ToolSpec | None, ready: Collection[str]) -> ToolEntry:
    fields: dict[str, Any] = {**vars(tool), "parameters": None if spec is None else spec.json_schema()}
    return ToolEntry(**fields, ready=tool.tool_id in ready)


def _describe_spec(spec: ToolSpec, ready: Collection[str]) -> ToolEntry:
    """A tool that no catalogue entry tells of."""
    media = next((argument.kind for argument in spec.arguments if argument.is_media), "text")
    backend = {"model": "huggingface", "remote": ""}.get(spec.method, "local")
    entry = _describe_tool(Tool(spec.tool_id, spec.description, media, spec.result, backend), spec, ready)
    entry = entry.model_copy(update={"name": spec.name})  # others' names need not be such as a dialogue can write
    return entry.model_copy(update={"backend": "mcp"}) if spec.method == "remote" else entry


async def _ask_replica(handle: Any) -> dict[str, Any]:
    """What a replica says of itself."""
    return await ask(handle.describe)


async def _ask_serve(handle: Any) -> dict[str, Any]:
    """Nothing, unless Ray Serve says that replicas fail: then a RuntimeError."""
    status = await asyncio.to_thread(ray_serve.status)
    deployment = status.applications[handle.app_name].deployments[handle.deployment_name]
    if deployment.status in FAULTY:
        raise RuntimeError(f"{handle.deployment_name} is {deployment.status.value}: {deployment.message}")
    return {}


async def _describe(asked: Awaitable[dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    """The word ok and what is said of a deployment, or in a few words what is wrong."""
    try:
        said = await asyncio.wait_for(asked, HEALTH_TIMEOUT_S)
    except TimeoutError:
        return f"no answer within {HEALTH_TIMEOUT_S:g} s", {}
    except Exception as error:  # whatever is wrong with a replica, this is the place that tells
        logger.warning("health: a deployment failed", exc_info=error)
        return "failed", {}
    return "ok", said


def build_api(service: SelectionService, chat: ChatService, *, is_behind_ray: bool = False) -> FastAPI:
    """The HTTP routes over the services; `is_behind_ray`: whether Ray Serve's servers stand before them."""
    # no /docs and /redoc of FastAPI's: those pages load scripts from elsewhere; ours is among the page's routes
    gate = [Depends(build_gate(service.args))]
    calls = IdempotentCalls(service.args.response_ttl_s, is_alone=service.args.ingress_replicas == 1)
    mcp, jobs = McpEndpoint(chat), JobRoutes(chat, calls)

    @asynccontextmanager
    async def run(api: FastAPI) -> AsyncIterator[None]:
        args = service.args
        # what others answer may be as large as what others ask
        async with McpServers(args.mcp_servers, args.tool_timeout_s, args.max_body_bytes) as servers:
            chat.add_servers(servers)
            async with mcp.run(), sweeping(chat.store), jobs.run(), calls.run(), reading_ahead(chat):
                yield

    api = FastAPI(title="toolmm", docs_url=None, redoc_url=None, openapi_url=None, dependencies=gate, lifespan=run)
    add_error_handlers(api, rpc_paths=(MCP_PATH,))
    api.add_middleware(BodyLimit, max_body_bytes=service.args.max_body_bytes, timeout_s=service.args.request_timeout_s)
    api.add_middleware(OtherMethods)
    add_cors(api, service.args.cors_origins)
    api.add_middleware(RequestTelemetry, telemetry=chat.telemetry, is_named_outside=is_behind_ray)

    @api.post(
        "/v1/tools/select",
        response_model=SelectAnswer,
        responses=describe_errors(404, *BODY_ERRORS),
        openapi_extra={"requestBody": {"required": True, "content": _request_content(service.args)}},
    )
    async def select(request: Request) -> SelectAnswer:
        question = await read_select_input(request, service.args)  # which has its own limit, and its own error
        async with asyncio.timeout(service.args.request_timeout_s):
            return await service.select(question)

    @api.get("/v1/tools", responses=describe_errors(404, 422))
    async def tools(model: str | None = None) -> ToolList:
        return service.tools(chat.specs, chat.ready, model)

    @api.get("/healthz", response_model=Health, responses={503: {"model": Health}})
    async def healthz() -> JSONResponse:
        health = await service.health()
        return JSONResponse(health.model_dump(), status_code=200 if health.status == "ok" else 503)

    @api.get("/openapi.json", include_in_schema=False)  # FastAPI's own route would not ask the gate
    async def describe() -> JSONResponse:
        return JSONResponse(api.openapi())

    add_chat_routes(api, chat, calls)
    mcp.add_route(api)
    jobs.add_routes(api)
    add_response_routes(api, chat)
    add_page_routes(api)
    return api


def _request_content(args: ServeArgs) -> dict[str, Any]:
    instruction = {"type": "string", "minLength": 1, "maxLength": args.max_instruction_chars}
    form = {
        "type": "object",
        "required": ["instruction"],
        "additionalProperties": False,
        "properties": {
            "instruction": instruction,
            "k": {"type": "integer", "minimum": 1},
            "model": {"type": "string"},
            "modality": {"type": "string", "enum": ["image", "audio", "video"]},
            "any_modality": {"type": "boolean"},
            "file": {"type": "string", "format": "binary"},
        },
    }
    schema = SelectRequest.model_json_schema()
    media = schema.pop("$defs")["MediaPart"]  # inlined: references would point outside of this schema
    schema["properties"]["media"]["anyOf"][0] = media
    schema["properties"]["instruction"] = instruction
    schema["properties"]["k"]["anyOf"][0]["minimum"] = 1
    return {"application/json": {"schema": schema}, "multipart/form-data": {"schema": form}}


@ray_serve.deployment
@ray_serve.ingress()
class Ingress:
    """HTTP in front of the deployments."""

    def __init__(
        self,
        args: ServeArgs,
        models: list[ServedModel],
        predictor: Any,
        encoder: Any,
        local_tools: Any,
        model_tools: Any,
    ) -> None:
        shared_decoder().start()  # so that the first upload does not wait for it
        selector = Selector(args, ServedModels(models, predictor), predictor, encoder, Telemetry())
        self._service = SelectionService(args, selector, predictor, encoder)
        self._chat = ChatService(args, selector, predictor, local_tools, model_tools)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_api(self._service, self._chat, is_behind_ray=True)
