"""Replicas die and champions change under load: no request fails."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
from ray import serve as ray_serve
from ray.util.state import list_actors
from small_service import APP, SELECT, Service, make_bundle, picture

from model.bundle import load_bundle
from serve.app import build_app

pytestmark = [pytest.mark.ray, pytest.mark.slow]

EDGES = "local/detect-edges"
CLIENTS = 6


@dataclass
class Load:
    """What the clients saw: (seconds that it took, status or error)."""

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
    found, stop = Load(), threading.Event()

    def ask_on() -> None:
        with httpx.Client(timeout=120) as client:
            while not stop.is_set():
                sent = time.perf_counter()
                try:
                    status: Any = post(client).status_code
                except httpx.HTTPError as error:
                    status = repr(error)
                found.answers.append((time.perf_counter() - sent, status))

    threads = [threading.Thread(target=ask_on, daemon=True) for _ in range(CLIENTS)]
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


def kill_one(deployment: str) -> float:
    """SIGKILL a replica; returns the seconds until another lives."""
    [pid] = find_replicas(deployment)
    os.kill(pid, signal.SIGKILL)
    return wait_until(lambda: bool(find_replicas(deployment)) and pid not in find_replicas(deployment))


def test_a_killed_predictor_fails_no_request(service: Service) -> None:
    with load(lambda client: client.post(service.url + SELECT, json={"instruction": "improve this"})) as found:
        wait_until(lambda: len(found.answers) > 20)
        n_before = len(found.answers)
        seconds = kill_one("Predictor")
        wait_until(lambda: len(found.answers) > n_before + 5 * CLIENTS)
    assert found.failures == []
    print(f"the predictor was back after {seconds:.1f} s; the longest request took {found.longest_s:.1f} s")


def test_a_killed_tool_host_fails_no_request(service: Service) -> None:
    upload = httpx.post(f"{service.url}/v1/artifacts", files={"file": ("a.png", picture(), "image/png")})
    arguments = {"arguments": {"image": upload.json()["id"]}}
    with load(lambda client: client.post(f"{service.url}/v1/tools/{EDGES}/invoke", json=arguments)) as found:
        wait_until(lambda: len(found.answers) > 10)
        n_before = len(found.answers)
        seconds = kill_one("LocalTools")
        wait_until(lambda: len(found.answers) > n_before + 3 * CLIENTS)
    assert found.failures == []
    print(f"the tools were back after {seconds:.1f} s; the longest request took {found.longest_s:.1f} s")


def test_a_new_champion_is_taken_over_without_a_failed_request(service: Service, tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "bundle", tmp_path / "backbone", service.encoder_dir, seed=8)
    revision = load_bundle(folder).revision
    assert revision != service.bundle.revision

    def served() -> str:
        return httpx.get(f"{service.url}/v1/tools", timeout=120).json()["bundle_revision"]

    assert served() == service.bundle.revision
    with load(lambda client: client.post(service.url + SELECT, json={"instruction": "improve this"})) as found:
        wait_until(lambda: len(found.answers) > 20)
        ray_serve.run(build_app({**service.args, "bundle": str(folder)}), name=APP)
        n_before = len(found.answers)
        wait_until(lambda: len(found.answers) > n_before + 3 * CLIENTS)
    assert found.failures == []
    assert served() == revision
    ray_serve.run(build_app(service.args), name=APP)
    assert served() == service.bundle.revision
