"""The service that is measured, as it is deployed, and a client that keeps its connection."""

from __future__ import annotations

import http.client
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import serve as ray_serve

from serve.app import build_app

API_KEY = secrets.token_hex()  # behind HAProxy the service wants one
DTYPE = "float32"  # of the language model here and there; bfloat16 is slower on a CPU without AMX
INGRESS_REPLICAS = 2  # one Python process that speaks HTTP for each core, as the other one waits for the model
K = 5  # tools that a selection names


@dataclass(frozen=True)
class StreamedAnswer:
    """What an agent's streamed answer took.

    Attributes:
        first_s: until its first words came; None where there were none.
        prompt_tokens, cached_tokens: of all its turns; those that had been read for an earlier answer.
        n_steps: calls of tools.
    """

    first_s: float | None
    prompt_tokens: int
    cached_tokens: int
    n_steps: int


class Client:
    """One connection that is kept."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)

    def select(self, question: str) -> bool:
        """Ask which tools suit; whether the answer was one."""
        response = self._post("/v1/tools/select", {"instruction": question})
        response.read()
        return response.status == 200

    def stream_agent(self, words: str) -> StreamedAnswer:
        """Ask the agent, and read its answer to the end.

        Raises:
            RuntimeError: the service refused.
        """
        body = {
            "model": "toolmm-agent",
            "messages": [{"role": "user", "content": words}],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        start, first_s, n_steps = time.perf_counter(), None, 0
        response = self._post("/v1/chat/completions", body)
        if response.status != 200:
            raise RuntimeError(f"the agent answered {response.status}: {response.read()[:500]!r}")
        usage: dict[str, Any] = {}
        for line in response:
            _, is_data, data = line.decode().strip().partition("data: ")
            if not is_data or data == "[DONE]":
                continue
            chunk = json.loads(data)
            usage = chunk.get("usage") or usage
            n_steps += "step" in chunk.get("agent", ())
            if first_s is None and any(choice["delta"].get("content") for choice in chunk["choices"]):
                first_s = time.perf_counter() - start
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        return StreamedAnswer(first_s, usage["prompt_tokens"], cached, n_steps)

    def _post(self, path: str, body: dict[str, Any]) -> http.client.HTTPResponse:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {API_KEY}"}
        self._connection.request("POST", path, json.dumps(body), headers)
        return self._connection.getresponse()


@contextmanager
def serving(bundle: Path, artifacts: Path) -> Iterator[int]:
    """The service over a bundle, its artifacts in a folder; yields its port. Ray is started where it is not there."""
    os.environ["TOOLMM_API_KEYS"] = API_KEY
    if not ray.is_initialized():
        ray.init("local", num_cpus=8, include_dashboard=False, log_to_driver=False)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    ray_serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        args = {
            "bundle": str(bundle),
            "artifacts": str(artifacts),
            "dtype": DTYPE,
            "top_k": K,
            "ingress_replicas": INGRESS_REPLICAS,
        }
        ray_serve.run(build_app(args), name="toolmm-bench")
        yield port
    finally:
        ray_serve.shutdown()
        del os.environ["TOOLMM_API_KEYS"]
