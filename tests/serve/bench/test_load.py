"""Rates count what was answered; a steady load's latencies begin when a question comes, not when it is sent."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from serve.bench.load import Load, run_clients, run_steady

WORK_S = 0.02


@pytest.fixture
def port() -> Iterator[int]:
    """A service that answers one question after the other, and refuses those about a fault."""
    is_free = threading.Lock()

    class Answering(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            with is_free:
                time.sleep(WORK_S)
            self.send_response(500 if b"fault" in body else 200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


def test_loads_add_up_and_failures_are_no_queries() -> None:
    both = Load(2.0, [(0.1, True), (0.3, True)]) + Load(2.0, [(0.2, True), (0.2, False)])
    assert both.queries_per_s == 0.75
    assert both.n_failed == 1
    assert both.percentile_ms(50) == pytest.approx(200)


def test_clients_reach_what_the_service_can(port: int) -> None:
    load = run_clients(port, ["one", "two"], 0.5)
    assert 0.2 / WORK_S < load.queries_per_s <= 1 / WORK_S
    assert load.n_failed == 0
    assert run_clients(port, ["a fault"], 0.1).queries_per_s == 0


def test_questions_that_come_too_fast_wait_in_their_latency(port: int) -> None:
    """At twice what the service can, the last ones wait for about as long as the load lasts."""
    slow = run_steady(port, ["one"], 2 / WORK_S, 0.6)
    assert slow.percentile_ms(99) > 400
    assert run_steady(port, ["one"], 0.2 / WORK_S, 0.6).percentile_ms(50) < 200
