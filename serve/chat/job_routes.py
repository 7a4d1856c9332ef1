"""The routes of calls that nobody waits for; a job belongs to the key that began it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel

from serve.chat.answer import ChatService
from serve.chat.idempotency import IdempotencyKey, IdempotentCalls
from serve.chat.routes import InvokeAnswer, InvokeRequest, describe_result, parse_invoke
from serve.chat.tool_jobs import MAX_KEPT, JobStatus, ToolJob, ToolJobs
from serve.http.body import read_body
from serve.http.errors import describe_error
from serve.http.json_body import describe_body
from serve.http.schemas import BODY_ERRORS, ErrorBody, describe_errors


class JobEntry(BaseModel):
    """A job as responses show it."""

    id: str
    object: Literal["tool.job"] = "tool.job"
    tool_id: str
    status: JobStatus
    created: int
    result: InvokeAnswer | None
    error: ErrorBody | None


class JobRoutes:
    """Calls of tools as jobs, in the memory of the one ingress replica."""

    def __init__(self, chat: ChatService, calls: IdempotentCalls) -> None:
        self._chat = chat
        self._calls = calls
        self._jobs = ToolJobs(chat.invoke, MAX_KEPT, chat.args.response_ttl_s)

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """What runs at the block's end is cancelled."""
        try:
            yield
        finally:
            await self._jobs.close()

    def add_routes(self, api: FastAPI) -> None:
        """Add the routes to the application."""
        chat, jobs, calls = self._chat, self._jobs, self._calls

        @api.post(
            "/v1/tools/{tool_id:path}/jobs",
            status_code=202,
            responses=describe_errors(404, 429, *BODY_ERRORS),
            openapi_extra=describe_body(InvokeRequest),
        )
        async def begin(
            tool_id: str, request: Request, response: Response, idempotency_key: IdempotencyKey = None
        ) -> JobEntry:
            wanted = parse_invoke(await read_body(request, chat.args, ("application/json",)))
            chat.find_spec(tool_id)
            caller = request.state.caller

            async def start() -> ToolJob:
                return jobs.start(caller, tool_id, wanted.arguments)

            job = await calls.once(caller, idempotency_key, ["jobs", tool_id, wanted.arguments], start)
            response.headers["Location"] = f"/v1/jobs/{job.id}"
            return _describe(request, job)

        @api.get("/v1/jobs/{job_id}", responses=describe_errors(404, 422))
        async def find(job_id: str, request: Request) -> JobEntry:
            return _describe(request, jobs.find(request.state.caller, job_id))

        @api.post("/v1/jobs/{job_id}/cancel", responses=describe_errors(404, 422))
        async def cancel(job_id: str, request: Request) -> JobEntry:
            return _describe(request, await jobs.cancel(request.state.caller, job_id))


def _describe(request: Request, job: ToolJob) -> JobEntry:
    return JobEntry(
        id=job.id,
        tool_id=job.tool_id,
        status=job.status,
        created=int(job.created_s),
        result=None if job.result is None else describe_result(job.tool_id, job.result),
        error=None if job.error is None else describe_error(request, job.error)[1].error,
    )
