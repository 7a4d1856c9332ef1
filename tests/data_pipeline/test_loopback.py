"""Proxies of the environment are asked for the addresses of others, and for none of this machine's own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from data_pipeline.loopback import is_loopback, open_url


class _Echo(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.path.encode())

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server() -> Iterator[str]:
    """Its address; it answers with what it is asked for."""
    http = ThreadingHTTPServer(("127.0.0.1", 0), _Echo)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}"
    http.shutdown()
    http.server_close()
    thread.join()


@pytest.mark.parametrize(
    ("url", "is_own"),
    [
        ("http://127.0.0.1:8000", True),
        ("http://127.8.9.1/v1", True),
        ("http://[::1]:8000/v1", True),
        ("https://LocalHost/v1", True),
        ("http://localhost.example.com", False),
        ("http://128.0.0.1", False),
        ("http://10.0.0.1:8000", False),
        ("http://[::2]", False),
        ("http://[::1", False),
        ("127.0.0.1:8000", False),
        ("", False),
    ],
)
def test_which_addresses_are_this_machines_own(url: str, is_own: bool) -> None:
    assert is_loopback(url) == is_own


def test_a_proxy_is_asked_for_other_addresses_alone(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with open_url(f"{server}/own", timeout_s=10) as response:
        assert response.read() == b"/own"
    monkeypatch.setenv("http_proxy", server)
    with open_url("http://elsewhere.invalid/page", timeout_s=10) as response:
        assert response.read() == b"http://elsewhere.invalid/page"
