"""Replicas die and champions change under load: no request fails."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest
import ray
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from ray import serve as ray_serve
from ray.util.state import list_actors
from small_service import APP, CATALOG, SELECT, Service, make_bundle, picture

from data_pipeline.records.catalog import Tool, ToolCatalog
from model.llm.bundle import load_bundle
from serve.app import build_app

pytestmark = [pytest.mark.ray, pytest.mark.slow]

EDGES = "local/detect-edges"
CLIENTS = 6
N_BY_MCP = 2


@dataclass
class Load:
    """What the clients saw: (seconds that it took, 200 or what else came)."""

    answers: list[tuple[float, Any]] = field(default_factory=list)

    @property
    def failures(self) -> list[Any]:
        return [status for _, status in self.answers if status != 200]

    @property
    def longest_s(self) -> float:
        return max(seconds for seconds, _ in self.answers)


@contextmanager
def load(post: Callable[[httpx.Client], httpx.Response]) -> Iterator[Load]:
    """Clients that ask one question after the other until the block ends."""

    def ask_on(found: Load, stop: threading.Event) -> None:
        with httpx.Client(timeout=120) as client:
            while not stop.is_set():
                sent = time.perf_counter()
                try:
                    answer = post(client)
                    status: Any = answer.status_code if answer.status_code == 200 else answer.text
                except httpx.HTTPError as error:
                    status = repr(error)
                found.answers.append((time.perf_counter() - sent, status))

    with _running(CLIENTS, ask_on) as found:
        yield found


def load_selections(service: Service) -> AbstractContextManager[Load]:
    """Clients that ask which tool to take."""
    return load(lambda client: client.post(service.url + SELECT, json={"instruction": "improve this"}))


@contextmanager
def load_by_mcp(service: Service) -> Iterator[Load]:
    """MCP's own clients, which have the edges of a picture drawn again and again until the block ends."""
    arguments = {"image": base64.b64encode(picture()).decode()}

    async def call_on(found: Load, stop: threading.Event) -> None:
        async with (
            httpx2.AsyncClient(timeout=120) as http,
            Client(streamable_http_client(f"{service.url}/mcp", http_client=http)) as client,
        ):
            while not stop.is_set():
                sent = time.perf_counter()
                result = await client.call_tool("local__detect-edges", arguments)
                found.answers.append((time.perf_counter() - sent, result.content if result.is_error else 200))

    def run(found: Load, stop: threading.Event) -> None:
        try:
            asyncio.run(call_on(found, stop))
        except Exception as error:  # noqa: BLE001  (whatever it is, the call has failed)
            found.answers.append((0.0, repr(error)))

    with _running(N_BY_MCP, run) as found:
        yield found


@contextmanager
def _running(n: int, ask_on: Callable[[Load, threading.Event], None]) -> Iterator[Load]:
    found, stop = Load(), threading.Event()
    threads = [threading.Thread(target=ask_on, args=(found, stop), daemon=True) for _ in range(n)]
    for thread in threads:
        thread.start()
    try:
        yield found
    finally:
        stop.set()
        for thread in threads:
            thread.join(150)


def find_replicas(deployment: str) -> list[int]:
    """Process ids of a deployment's living replicas."""
    address = ray.get_runtime_context().gcs_address
    actors: list[Any] = list_actors(address, filters=[("state", "=", "ALIVE")], limit=1000)
    return [actor.pid for actor in actors if actor.class_name == f"ServeReplica:{APP}:{deployment}"]


def wait_until(is_so: Callable[[], bool], timeout_s: float = 120) -> float:
    """Seconds until it is so."""
    start = time.perf_counter()
    while not is_so():
        assert time.perf_counter() - start < timeout_s
        time.sleep(0.1)
    return time.perf_counter() - start


def kill_one(deployment: str, post: Callable[[], httpx.Response]) -> float:
    """SIGKILL a replica; returns the seconds until a request that is sent now is answered."""
    [pid] = find_replicas(deployment)
    os.kill(pid, signal.SIGKILL)
    start = time.perf_counter()
    assert post().status_code == 200
    assert pid not in find_replicas(deployment)
    return time.perf_counter() - start


def test_a_killed_predictor_fails_no_request(service: Service) -> None:
    with load_selections(service) as found:
        wait_until(lambda: len(found.answers) > 20)
        n_before = len(found.answers)
        seconds = kill_one("Predictor", lambda: service.post(json={"instruction": "improve this"}))
        wait_until(lambda: len(found.answers) > n_before + 5 * CLIENTS)
    assert found.failures == []
    print(f"a request sent when the predictor died took {seconds:.1f} s, the longest one {found.longest_s:.1f} s")


def test_a_killed_tool_host_fails_no_request(service: Service) -> None:
    upload = httpx.post(f"{service.url}/v1/artifacts", files={"file": ("a.png", picture(), "image/png")})
    arguments = {"arguments": {"image": upload.json()["id"]}}

    def post(client: Any) -> httpx.Response:
        return client.post(f"{service.url}/v1/tools/{EDGES}/invoke", json=arguments, timeout=120)

    with load(post) as found, load_by_mcp(service) as found_by_mcp:
        wait_until(lambda: len(found.answers) > 10 and len(found_by_mcp.answers) > 2)
        n_before, n_by_mcp = len(found.answers), len(found_by_mcp.answers)
        seconds = kill_one("LocalTools", lambda: post(httpx))
        wait_until(lambda: len(found.answers) > n_before + 3 * CLIENTS)
        wait_until(lambda: len(found_by_mcp.answers) > n_by_mcp + CLIENTS)
    assert found.failures == []
    assert found_by_mcp.failures == []
    print(f"a request sent when the tools died took {seconds:.1f} s, the longest one {found.longest_s:.1f} s")


def served(service: Service) -> dict[str, Any]:
    """The catalogue as it is served, and the bundle's revision."""
    return httpx.get(f"{service.url}/v1/tools", timeout=120).json()


def test_a_new_champion_is_taken_over_without_a_failed_request(service: Service, tmp_path: Path) -> None:
    """The link points elsewhere: the replica that is there takes the new bundle over, its other tools too."""
    more = ToolCatalog([*CATALOG, Tool("rotate", "Turns a picture.", "image", "image", "local")])
    folder = make_bundle(tmp_path / "bundle", tmp_path / "backbone", service.encoder_dir, seed=8, catalog=more)
    link = Path(service.args["bundle"])
    replicas = find_replicas("Predictor")

    def point_to(target: Path) -> None:
        (tmp_path / "link").symlink_to(target)
        os.replace(tmp_path / "link", link)

    with load_selections(service) as found, load_by_mcp(service) as found_by_mcp:
        wait_until(lambda: len(found.answers) > 20 and len(found_by_mcp.answers) > 2)
        (broken := tmp_path / "broken").mkdir()
        point_to(broken)
        time.sleep(3)
        assert served(service)["bundle_revision"] == service.bundle.revision, "what is no bundle is not taken over"
        point_to(folder)
        seconds = wait_until(lambda: served(service)["bundle_revision"] == load_bundle(folder).revision)
        n_before, n_by_mcp = len(found.answers), len(found_by_mcp.answers)
        wait_until(lambda: len(found.answers) > n_before + 3 * CLIENTS)
        wait_until(lambda: len(found_by_mcp.answers) >= n_by_mcp + 2 * N_BY_MCP)
    assert found.failures == []
    assert found_by_mcp.failures == []
    assert "rotate" in [tool["tool_id"] for tool in served(service)["tools"]]
    point_to(service.bundle.folder)
    wait_until(lambda: service.post(json={"instruction": "x"}).json()["bundle_revision"] == service.bundle.revision)
    assert find_replicas("Predictor") == replicas, "nothing was started anew"
    print(f"taken over after {seconds:.1f} s; the longest request took {found.longest_s:.1f} s")


def test_a_new_deployment_fails_no_request(service: Service) -> None:
    """`serve deploy` with other arguments replaces the replicas."""
    replicas = find_replicas("Predictor")
    with load_selections(service) as found, load_by_mcp(service) as found_by_mcp:
        wait_until(lambda: len(found.answers) > 20 and len(found_by_mcp.answers) > 2)
        ray_serve.run(build_app({**service.args, "request_timeout_s": 61}), name=APP)
        n_before, n_by_mcp = len(found.answers), len(found_by_mcp.answers)
        wait_until(lambda: len(found.answers) > n_before + 3 * CLIENTS)
        wait_until(lambda: len(found_by_mcp.answers) >= n_by_mcp + 2 * N_BY_MCP)
    assert found.failures == []
    assert found_by_mcp.failures == []
    wait_until(lambda: not set(find_replicas("Predictor")) & set(replicas))
    print(f"the longest request took {found.longest_s:.1f} s")
