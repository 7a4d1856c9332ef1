"""The template teacher behind OpenAI's protocol, on this machine alone, so that it is asked as any other teacher is."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from data_pipeline.instruct.template_teacher import answer_prompt
from data_pipeline.teacher.options import TeacherOptions

MODEL = "template"
MAX_BODY_BYTES = 1_000_000
TIMEOUT_S = 30  # of a caller that sends nothing
_CHARS_PER_TOKEN = 4


@contextmanager
def template_teacher() -> Iterator[TeacherOptions]:
    """Answers on a free port of 127.0.0.1 while the block runs; yields how it is asked."""
    server = _Server(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield TeacherOptions(url=f"http://127.0.0.1:{server.server_port}/v1", model=MODEL, api_key_env="")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # connections that wait; with 5 of them the rest is refused, and asked again


class _Handler(BaseHTTPRequestHandler):
    timeout = TIMEOUT_S

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if self.path != "/v1/chat/completions":
            self._send(404, _fault("there is only /v1/chat/completions"))
        elif not length.isdecimal() or int(length) > MAX_BODY_BYTES:
            self._send(413, _fault(f"the body has no length, or more than {MAX_BODY_BYTES:,} bytes"))
        else:
            self._answer(self.rfile.read(int(length)))

    def _answer(self, body: bytes) -> None:
        try:
            prompt = json.loads(body)["messages"][-1]["content"]
            if not isinstance(prompt, str):
                raise TypeError("the last message holds no text")
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            self._send(400, _fault(f"no chat completion request ({error})"))
            return
        text = answer_prompt(prompt)
        n_in, n_out = len(prompt) // _CHARS_PER_TOKEN, len(text) // _CHARS_PER_TOKEN
        reply = {
            "id": "chatcmpl-template",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": MODEL,
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": n_in, "completion_tokens": n_out, "total_tokens": n_in + n_out},
        }
        self._send(200, reply)

    def _send(self, status: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """No line for every request."""


def _fault(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error"}}
