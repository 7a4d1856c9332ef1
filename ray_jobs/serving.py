"""A bundle served with Ray's own command for as long as a job asks it something: what `demo` and `own` end with."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import yaml

from data_pipeline import storage
from data_pipeline.errors import InputError
from data_pipeline.loopback import open_url
from ray_jobs.config import RunSpec

START_TIMEOUT_S = 180
TOP_K = 3


@dataclass(frozen=True)
class Question:
    """What is asked: words, a medium where there is one, the right answers to that, and a remark for people."""

    instruction: str
    media: Path | None
    valid_tool_ids: tuple[str, ...]
    note: str


def check_nobody_serves() -> None:
    """Refuse to serve on a Ray where Serve runs: `serve run` replaces all applications, and ends Serve when it ends.

    Raises:
        InputError: names the applications.
    """
    from ray import serve  # a second of import time
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

    try:  # not `serve.status` at once: where nothing is served it lets the logs of all other jobs into this one's
        ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    except ValueError:
        return
    names = ", ".join(map(repr, serve.status().applications)) or "no application yet"
    raise InputError(
        f"Ray Serve runs already on the Ray at {ray.get_runtime_context().gcs_address} ({names}), and this job "
        "would end it; unset RAY_ADDRESS to serve on a Ray of this job's own, name another cluster there, or run "
        "`serve shutdown` if nobody needs what is served."
    )


@contextmanager
def serving(spec: RunSpec, bundle: Path) -> Iterator[str]:
    """Serve a bundle with Ray's own command until the block ends; yields the service's address.

    Raises:
        InputError: something is served there already.
    """
    check_nobody_serves()
    port = _free_port()
    config = {
        "http_options": {"host": "127.0.0.1", "port": port},
        "applications": [
            {
                "name": "toolmm",
                "route_prefix": "/",
                "import_path": "serve.app:build_app",
                "args": {"bundle": str(bundle)},
            }
        ],
    }
    config_path = spec.work_dir / "serve.yaml"
    storage.write_file(config_path, yaml.safe_dump(config, sort_keys=False))
    log_path = spec.work_dir / "serve.log"
    address = ray.get_runtime_context().gcs_address
    project = Path(__file__).resolve().parent.parent
    with log_path.open("wb") as log, _heeding_interrupts():
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name("serve")), "run", "--app-dir", str(project), str(config_path)],
            env=os.environ | {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "token"},
            cwd=project,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_healthy(url, process, log_path)
        print(f"serving {bundle} at {url}", flush=True)
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def _heeding_interrupts() -> Iterator[None]:
    """Processes that are started within heed SIGINT, which a shell's background jobs ignore, and their children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def ask(url: str, question: Question) -> dict[str, Any]:
    """One request to `/v1/tools/select`."""
    body: dict[str, Any] = {"instruction": question.instruction, "k": TOP_K}
    if question.media is not None:
        body["media"] = {"data": base64.b64encode(question.media.read_bytes()).decode("ascii")}
    request = urllib.request.Request(
        f"{url}/v1/tools/select", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with open_url(request, timeout_s=60) as response:
        return json.load(response)


def show_answers(questions: Sequence[Question], answers: Sequence[dict[str, Any]]) -> None:
    """Print each question with the likeliest tools; those that are right are marked."""
    for number, (question, answer) in enumerate(zip(questions, answers, strict=True), start=1):
        medium = f"with {question.media.name}: " if question.media else ""
        print(f"\n{number}. “{question.instruction.strip()}”\n     {medium}{question.note}")
        for tool in answer["tools"][:TOP_K]:
            mark = "right" if tool["tool_id"] in question.valid_tool_ids else ""
            bar = "█" * round(20 * tool["probability"])
            print(f"     {tool['probability']:6.1%}  {bar:<20} {tool['tool_id']:<56}{mark}".rstrip())


def wait_for_interrupt(url: str) -> None:
    """Say where the service is, until Ctrl-C."""
    print(f"\nserving at {url} until you press Ctrl-C; try: python -m serve.client {url} 'Improve this picture' FILE")
    try:
        signal.pause()
    except KeyboardInterrupt:
        print("stopping")


def _wait_until_healthy(url: str, process: subprocess.Popen[bytes], log_path: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            with open_url(f"{url}/healthz", timeout_s=10) as response:
                if response.status == 200:
                    return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.5)
    tail = "\n".join(log_path.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])
    raise RuntimeError(f"the service did not become healthy; the end of {log_path}:\n{tail}")


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]
