"""Calls of tools that nobody waits for, over HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from stand_in_service import Method, World, serve

from serve.agent.tool_reply import ToolReply, ToolResult
from serve.chat import tool_jobs
from serve.chat.tool_jobs import MAX_RUNNING, ToolJobs
from serve.http.access import KEYS_VARIABLE
from serve.http.schemas import RequestError

EDGES = "/v1/tools/local/detect-edges/jobs"
ADA, BOB = "a-key-of-the-tests-1", "a-key-of-the-tests-2"


class Host:
    """Stands for the replicas that run tools: one call answers, one fails, one never ends."""

    def __init__(self) -> None:
        self.n_left = 0
        self.invoke = Method(self._invoke)

    async def _invoke(self, tool_id: str, arguments: dict[str, Any], caller: str) -> ToolReply:
        if "wait" in arguments:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                self.n_left += 1
                raise
        if "fail" in arguments:
            return ToolReply(error="out_of_memory", message="It needs too much memory.")
        return ToolReply("Done.")


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
def client(host: Host) -> Iterator[httpx.Client]:
    world = World(tools=SimpleNamespace(invoke=host.invoke))
    with serve(world) as url, httpx.Client(base_url=url) as client:
        yield client


def wait_for(client: httpx.Client, job_id: str) -> dict[str, Any]:
    for _ in range(200):
        job = client.get(f"/v1/jobs/{job_id}").json()
        if job["status"] != "running":
            return job
        time.sleep(0.02)
    raise AssertionError(job)


def test_a_job_is_begun_asked_after_and_answered(client: httpx.Client) -> None:
    begun = client.post(EDGES, json={"arguments": {}})
    assert begun.status_code == 202
    job_id = begun.json()["id"]
    assert begun.headers["location"] == f"/v1/jobs/{job_id}"
    assert begun.json()["tool_id"] == "local/detect-edges"
    job = wait_for(client, job_id)
    assert (job["status"], job["error"]) == ("completed", None)
    assert job["result"] == {"tool_id": "local/detect-edges", "text": "Done.", "artifact": None}


def test_a_failure_is_told_as_the_call_itself_would_tell_it(client: httpx.Client) -> None:
    job = wait_for(client, client.post(EDGES, json={"arguments": {"fail": 1}}).json()["id"])
    assert (job["status"], job["result"]) == ("failed", None)
    plain = client.post(EDGES.replace("jobs", "invoke"), json={"arguments": {"fail": 1}})
    assert job["error"] == plain.json()["error"]


def test_a_cancelled_job_is_ended_where_it_runs(client: httpx.Client, host: Host) -> None:
    job_id = client.post(EDGES, json={"arguments": {"wait": 1}}).json()["id"]
    time.sleep(0.1)
    assert client.get(f"/v1/jobs/{job_id}").json()["status"] == "running"
    for _ in range(2):  # the second changes nothing
        assert client.post(f"/v1/jobs/{job_id}/cancel").json()["status"] == "cancelled"
    assert host.n_left == 1
    done = wait_for(client, client.post(EDGES, json={"arguments": {}}).json()["id"])
    assert client.post(f"/v1/jobs/{done['id']}/cancel").json()["status"] == "completed"


def test_what_runs_when_the_service_ends_is_ended(host: Host) -> None:
    with serve(World(tools=SimpleNamespace(invoke=host.invoke))) as url:
        assert httpx.post(url + EDGES, json={"arguments": {"wait": 1}}).status_code == 202
        time.sleep(0.1)
    assert host.n_left == 1


def test_what_cannot_be_a_job_is_told_at_once(client: httpx.Client) -> None:
    for path, body, status, code in (
        ("/v1/tools/no/such/jobs", {}, 404, "tool_not_found"),
        (EDGES, {"argument": {}}, 400, "bad_field"),
    ):
        refused = client.post(path, json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (status, code)
    assert client.post(EDGES, content=b"{", headers={"Content-Type": "application/json"}).status_code == 400
    for path in ("/v1/jobs/job_1", "/v1/jobs/job_1/cancel", f"/v1/jobs/{'j' * 500}"):
        missing = client.request("POST" if "cancel" in path else "GET", path)
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "job_not_found")


def test_a_job_is_its_callers_alone(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEYS_VARIABLE, f"ada:{ADA},bob:{BOB}")
    with serve(World(tools=SimpleNamespace(invoke=host.invoke))) as url:
        ada, bob = ({"Authorization": f"Bearer {key}"} for key in (ADA, BOB))
        job_id = httpx.post(url + EDGES, json={"arguments": {"wait": 1}}, headers=ada).json()["id"]
        assert httpx.get(f"{url}/v1/jobs/{job_id}", headers=ada).status_code == 200
        assert httpx.get(f"{url}/v1/jobs/{job_id}", headers=bob).status_code == 404
        assert httpx.post(f"{url}/v1/jobs/{job_id}/cancel", headers=bob).status_code == 404
        assert httpx.get(f"{url}/v1/jobs/{job_id}").status_code == 401
        assert httpx.get(f"{url}/v1/jobs/{job_id}", headers=ada).json()["status"] == "running"


def test_one_job_too_many_is_told_when_to_come_again(client: httpx.Client) -> None:
    for _ in range(MAX_RUNNING):
        assert client.post(EDGES, json={"arguments": {"wait": 1}}).status_code == 202
    refused = client.post(EDGES, json={"arguments": {}})
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_jobs")
    assert refused.headers["retry-after"] == "1"


def test_results_are_kept_whatever_others_keep() -> None:
    async def run() -> None:
        async def finish(*_: Any) -> ToolResult:
            return ToolResult("done")

        jobs = ToolJobs(finish, max_kept=3, ttl_s=100)
        his = jobs.start("bob", "t", {})
        hers = []
        for _ in range(9):
            hers.append(jobs.start("ada", "t", {}))
            await asyncio.wait([hers[-1].task])
        assert jobs.find("bob", his.id).result == ToolResult("done")
        assert jobs.find("ada", hers[-1].id).status == "completed"
        with pytest.raises(RequestError, match="no job"):
            jobs.find("ada", hers[0].id)

    asyncio.run(run())


def test_results_are_kept_where_no_responses_are(host: Host) -> None:
    world = World(tools=SimpleNamespace(invoke=host.invoke), responses_kept=0)
    with serve(world) as url, httpx.Client(base_url=url) as client:
        job_id = client.post(EDGES, json={"arguments": {}}).json()["id"]
        assert wait_for(client, job_id)["status"] == "completed"


def test_jobs_are_bounded_in_number_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async def wait(*_: Any) -> Any:
            await asyncio.sleep(60)

        jobs = ToolJobs(wait, max_kept=2, ttl_s=100)
        running = [jobs.start("ada", "t", {}) for _ in range(MAX_RUNNING)]
        with pytest.raises(RequestError, match="16 of your jobs are running"):
            jobs.start("ada", "t", {})
        jobs.start("bob", "t", {})
        assert (await jobs.cancel("ada", running[0].id)).status == "cancelled"
        jobs.start("ada", "t", {})
        with pytest.raises(RequestError, match="no job"):  # more than two are kept, so what is over goes first
            jobs.find("ada", running[0].id)
        now = time.time()
        monkeypatch.setattr(tool_jobs.time, "time", lambda: now + 101)
        assert jobs.find("ada", running[1].id).status == "running", "whatever its age"
        await jobs.close()
        with pytest.raises(RequestError, match="no job"):
            jobs.find("ada", running[1].id)

    asyncio.run(run())
