"""A chat server of the tests that speaks OpenAI's protocol, with faults on demand; and a clock that needs no time."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self


@dataclass(frozen=True)
class Fault:
    """What is sent instead of an answer.

    Attributes:
        body: None = the answer that would have come.
        cut_bytes: so many are missing at the end of the body, and the connection closes.
        is_hung: nothing is sent while the server runs.
    """

    status: int = 200
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    cut_bytes: int = 0
    is_hung: bool = False


Plan = Callable[[str, int], Fault | None]


def render_answer(text: str, prompt_tokens: int = 10, completion_tokens: int = 20) -> bytes:
    """A chat completion."""
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": 0}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    body = {"id": "chatcmpl-1", "object": "chat.completion", "model": "m", "choices": [choice], "usage": usage}
    return json.dumps(body).encode()


class ChatServer:
    """Answers "re: <question>"; keeps what it was asked. Use it as a context manager.

    Args:
        plan: (question, how often it was asked before) -> what to send instead of the answer.
        hold: answers wait until so many requests are in flight at once (for ten seconds at most).
    """

    def __init__(self, plan: Plan = lambda question, n_before: None, hold: int = 0) -> None:
        self.asked: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.most_in_flight = 0
        self.on_request: Callable[[], None] = lambda: None
        self._n_in_flight = 0
        self._plan = plan
        self._hold = hold
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._http = _Server(("127.0.0.1", 0), self._make_handler())
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}/v1"

    @property
    def n_asked(self) -> int:
        return self.asked.total()

    def wait_until(self, is_so: Callable[[], bool], timeout_s: float = 60) -> bool:
        """Wait until something about the requests holds."""
        with self._changed:
            return self._changed.wait_for(is_so, timeout_s)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closing.set()
        self._http.shutdown()
        self._http.server_close()

    def _make_handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, format: str, *args: object) -> None: ...

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                server._answer(self, body)

        return Handler

    def _answer(self, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        question = body["messages"][-1]["content"]
        with self._changed:
            n_before = self.asked[question]
            self.asked[question] += 1
            self.bodies.append(body)
            self.headers.append({name.lower(): value for name, value in handler.headers.items()})
            self.on_request()
            self._n_in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self._n_in_flight)
            self._changed.notify_all()
            if self._hold:
                self._changed.wait_for(lambda: self.most_in_flight >= self._hold, 10)
        fault = self._plan(question, n_before) or Fault()
        if handler.path != "/v1/chat/completions":
            fault = Fault(404, b'{"error": {"message": "no such path"}}')
        if fault.is_hung:
            self._closing.wait(60)
        with self._changed:
            self._n_in_flight -= 1
        content = render_answer(f"re: {question}") if fault.body is None else fault.body
        handler.send_response(fault.status)
        for name, value in {"content-type": "application/json", **fault.headers}.items():
            handler.send_header(name, value)
        handler.send_header("content-length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content[: len(content) - fault.cut_bytes])
        handler.close_connection = bool(fault.cut_bytes)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request: object, client_address: object) -> None:
        """Callers that went away are what the tests are about."""


class FastClock:
    """Waits for nothing, and says that it has."""

    def __init__(self) -> None:
        self.time_s = 0.0
        self.waits_s: list[float] = []

    def now_s(self) -> float:
        return self.time_s

    async def sleep(self, seconds: float) -> None:
        until_s = self.time_s + seconds
        self.waits_s.append(seconds)
        await asyncio.sleep(0)
        self.time_s = max(self.time_s, until_s)
