"""What a job that serves a bundle for a while starts, and how it ends that."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray import serve

from data_pipeline.errors import InputError
from ray_jobs import demo, serving
from ray_jobs.config import load_run_spec
from ray_jobs.own import job as own
from ray_jobs.serving import Question, _heeding_interrupts, ask, check_nobody_serves

CHILD = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"


def test_a_service_heeds_the_interrupt_that_a_background_job_ignores() -> None:
    """Otherwise it would be waited for, a minute long, and killed."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with _heeding_interrupts():
            process = subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert process.communicate(timeout=60)[0] == "True\n"
    finally:
        signal.signal(signal.SIGINT, before)


def test_applications_of_others_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(name: str, namespace: str) -> None:
        raise ValueError(f"there is no actor {name} in {namespace}")

    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address="10.0.0.1:6379"))
    monkeypatch.setattr(ray, "get_actor", nobody)
    check_nobody_serves()
    monkeypatch.setattr(ray, "get_actor", lambda name, namespace: None)
    monkeypatch.setattr(serve, "status", lambda: SimpleNamespace(applications={"shop": None}))
    with pytest.raises(
        InputError, match=r"^Ray Serve runs already on the Ray at 10\.0\.0\.1:6379 \('shop'\).*unset RAY_A"
    ):
        check_nobody_serves()
    monkeypatch.setattr(serve, "status", lambda: SimpleNamespace(applications={}))
    with (
        pytest.raises(InputError, match="no application yet"),
        serving.serving(load_run_spec(None, []), Path("bundle")),
    ):
        raise AssertionError("it was served")


@pytest.mark.parametrize("job", [demo, own])
def test_a_served_job_refuses_before_its_first_stage(job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise InputError("somebody serves")

    monkeypatch.setattr(job, "connect", lambda options: None)
    monkeypatch.setattr(job, "check_nobody_serves", refuse)
    tools = ["generate.recipe=questions", f"generate.tools={tmp_path / 'tools.jsonl'}"]
    with pytest.raises(InputError, match="somebody serves"):
        job.run(load_run_spec(None, [f"runs_dir={tmp_path / 'runs'}", *tools]))
    assert not (tmp_path / "runs").exists()


class _Tools(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        body = json.dumps({"tools": [self.path]}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


def test_the_service_is_asked_past_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with HTTPServer(("127.0.0.1", 0), _Tools) as server:
        server.timeout = 30
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        answer = ask(f"http://127.0.0.1:{server.server_port}", Question("grüße", None, (), ""))
        thread.join()
    assert answer == {"tools": ["/v1/tools/select"]}
