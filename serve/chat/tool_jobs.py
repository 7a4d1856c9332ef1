"""Calls of tools that nobody waits for: begun by one request, asked after and cancelled by others."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from serve.agent.tool_reply import ToolResult
from serve.chat.shares import find_first_to_go
from serve.http.schemas import RequestError

MAX_RUNNING = 16  # of one caller at the same time
MAX_KEPT = 500  # of all callers

JobStatus = Literal["running", "completed", "failed", "cancelled"]


@dataclass(frozen=True)
class ToolJob:
    """A call of a tool, under way or over.

    Attributes:
        task: gives the result.
        created_s: Unix time.
    """

    id: str
    caller: str
    tool_id: str
    task: asyncio.Task[ToolResult]
    created_s: float = field(default_factory=time.time)

    @property
    def status(self) -> JobStatus:
        """Where it stands."""
        if not self.task.done():
            return "running"
        if self.task.cancelled():
            return "cancelled"
        return "completed" if self.task.exception() is None else "failed"

    @property
    def result(self) -> ToolResult | None:
        """What the tool gave, once it is completed."""
        return self.task.result() if self.status == "completed" else None

    @property
    def error(self) -> Exception | None:
        """Why it failed, once it has."""
        error = self.task.exception() if self.status == "failed" else None
        assert error is None or isinstance(error, Exception)
        return error


class ToolJobs:
    """The jobs of the callers of one ingress replica, in its memory; for one event loop."""

    def __init__(
        self,
        invoke: Callable[[str, Mapping[str, Any], str], Awaitable[ToolResult]],
        max_kept: int,
        ttl_s: float,
    ) -> None:
        """Say what is done.

        Args:
            invoke: runs a tool: its id, arguments, and the caller.
            max_kept: jobs; where there are more, of those that are over the oldest of the caller who has most go.
            ttl_s: how long a job is kept from its beginning; one that runs is kept whatever its age.
        """
        self._invoke = invoke
        self._max_kept = max_kept
        self._ttl_s = ttl_s
        self._jobs: OrderedDict[str, ToolJob] = OrderedDict()

    def start(self, caller: str, tool_id: str, arguments: Mapping[str, Any]) -> ToolJob:
        """Begin a call.

        Raises:
            RequestError: the caller has as many under way as they may (429).
        """
        self._forget_old()
        running = [job for job in self._jobs.values() if job.caller == caller and job.status == "running"]
        if len(running) >= MAX_RUNNING:
            raise RequestError(
                f"{MAX_RUNNING} of your jobs are running; wait for one of them, or cancel it.", 429, "too_many_jobs"
            )

        async def run() -> ToolResult:
            return await self._invoke(tool_id, arguments, caller)

        job = ToolJob(f"job_{secrets.token_hex(12)}", caller, tool_id, asyncio.create_task(run()))
        self._jobs[job.id] = job
        return job

    def find(self, caller: str, job_id: str) -> ToolJob:
        """The caller's job of that id.

        Raises:
            RequestError: there is none, not any more, or it is another's (404).
        """
        self._forget_old()
        job = self._jobs.get(job_id)
        if job is None or job.caller != caller:
            raise RequestError(
                f"There is no job {job_id[:80]!r}; a job is kept for {self._ttl_s:g} s, and not when the service "
                "starts anew.",
                404,
                "job_not_found",
            )
        return job

    async def cancel(self, caller: str, job_id: str) -> ToolJob:
        """End a call that runs; one that is over stays as it is. Errors as of `find`."""
        job = self.find(caller, job_id)
        job.task.cancel()
        await asyncio.wait([job.task])
        return job

    async def close(self) -> None:
        """End all calls."""
        tasks = [job.task for job in self._jobs.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _forget_old(self) -> None:
        oldest_s = time.time() - self._ttl_s
        over = {job.id: job.caller for job in self._jobs.values() if job.status != "running"}
        for job_id in [job_id for job_id in over if self._jobs[job_id].created_s < oldest_s]:
            del self._jobs[job_id], over[job_id]
        while over and len(self._jobs) > self._max_kept:
            job_id = find_first_to_go(over)
            del self._jobs[job_id], over[job_id]
