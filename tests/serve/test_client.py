"""The client against a real socket that answers as the service does."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from serve.client import ServiceError, health, select


class _Handler(BaseHTTPRequestHandler):
    answer: tuple[int, bytes] = (200, b"{}")
    asked: Any = None

    def do_POST(self) -> None:
        type(self).asked = (self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self._reply()

    def do_GET(self) -> None:
        type(self).asked = (self.path, None)
        self._reply()

    def _reply(self) -> None:
        status, body = self.answer
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # must not be asked for a local address
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_select_sends_the_file(url: str, tmp_path: Path) -> None:
    _Handler.answer = (200, b'{"tools": []}')
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    assert select(url + "/", "grüße", tmp_path / "a.png", 3) == {"tools": []}
    path, body = _Handler.asked
    assert path == "/v1/tools/select"
    assert body == {
        "instruction": "grüße",
        "k": 3,
        "media": {"data": base64.b64encode(b"\x89PNG").decode(), "modality": None},
    }


def test_the_services_sentence_becomes_the_error(url: str) -> None:
    _Handler.answer = (422, b'{"error": {"message": "It is torn.", "type": "t", "param": null, "code": "bad_media"}}')
    with pytest.raises(ServiceError, match=r"^It is torn\.$") as caught:
        select(url, "a")
    assert (caught.value.status, caught.value.code) == (422, "bad_media")


def test_answers_of_others_are_reported(url: str) -> None:
    _Handler.answer = (502, b"bad gateway")
    with pytest.raises(ServiceError, match="HTTP 502: bad gateway"):
        health(url)


def test_no_service_and_no_address() -> None:
    with pytest.raises(ServiceError, match=r"no answer from http://127\.0\.0\.1:9 "):
        health("http://127.0.0.1:9")
    with pytest.raises(ServiceError, match="is no HTTP address"):
        health("file:///etc/passwd")
