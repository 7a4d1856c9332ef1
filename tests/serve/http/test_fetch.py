"""Fetching: public addresses alone, the checked address itself, every redirect anew, within size and time."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from serve.http.fetch import FetchLimits, fetch_url, is_public
from serve.http.schemas import RequestError

LOOKUPS: list[str] = []


class Site(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/drip":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            for _ in range(100):
                time.sleep(0.05)
                try:
                    self.wfile.write(b"x")
                except OSError:
                    return
            return
        if self.path.startswith("/to?"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to?"))
            self.end_headers()
            return
        body = b"x" * (2000 if self.path == "/large" else 5)
        self.send_response(404 if self.path == "/lost" else 200)
        if self.path != "/endless":
            self.send_header("Content-Length", str(len(body) + (self.path == "/cut")))
        if self.path == "/zipped":
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        self.wfile.write(self.headers["Host"].encode()[:5] if self.path == "/host" else body)
        while self.path == "/endless":
            try:
                self.wfile.write(body)
            except OSError:
                return

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@pytest.fixture
def limits(port: int, monkeypatch: pytest.MonkeyPatch) -> FetchLimits:
    """Names of a little internet: `open.test` is public and leads to the server above, `inner.test` is not."""
    LOOKUPS.clear()

    numeric = socket.getaddrinfo

    def look_up(host: str, port: int, *family: Any, **more: Any) -> list[Any]:
        if host[0].isdigit():  # a connection to an address that was looked up before
            return numeric(host, port, *family, **more)
        LOOKUPS.append(host)
        addresses = {"open.test": ["127.0.0.1"], "inner.test": ["127.0.0.2"], "both.test": ["127.0.0.1", "127.0.0.2"]}
        if host not in addresses:
            raise socket.gaierror
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses[host]]

    monkeypatch.setattr("serve.http.fetch.socket.getaddrinfo", look_up)
    monkeypatch.setattr("serve.http.fetch.is_public", lambda address: address == "127.0.0.1")
    return FetchLimits(max_bytes=1000, timeout_s=0.6, ports=(port,))


def test_what_is_there_is_read(limits: FetchLimits, port: int) -> None:
    assert fetch_url(f"http://open.test:{port}/", limits) == b"xxxxx"
    assert fetch_url(f"http://open.test:{port}/host", limits) == b"open."
    assert fetch_url(f"http://open.test:{port}/to?/to?http://open.test:{port}/", limits) == b"xxxxx"
    assert LOOKUPS == ["open.test"] * 5, "each hop is looked up once: it connects to what was checked"


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("http://inner.test:{port}/", "url_not_allowed"),
        ("http://both.test:{port}/", "url_not_allowed"),
        ("http://open.test:{port}/to?http://inner.test:{port}/", "url_not_allowed"),
        ("http://open.test:{port}/to?file:///etc/passwd", "url_not_allowed"),
        ("http://open.test:{port}/to?//open.test:1/", "url_not_allowed"),
        ("http://open.test:1/", "url_not_allowed"),
        ("http://open.test/", "url_not_allowed"),
        ("http://user:word@open.test:{port}/", "url_not_allowed"),
        ("http://open.test:{port}/\r\nX: y", "url_not_allowed"),
        ("http://[::1/", "url_not_allowed"),
        ("ftp://open.test/", "url_not_allowed"),
        ("http://nowhere.test:{port}/", "fetch_failed"),
        ("http://open.test:{port}/to?/to?/to?/to?/to?/", "fetch_failed"),
        ("http://open.test:{port}/lost", "fetch_failed"),
        ("http://open.test:{port}/cut", "fetch_failed"),
        ("http://open.test:{port}/zipped", "fetch_failed"),
        ("https://open.test:{port}/", "fetch_failed"),
        ("http://open.test:{port}/large", "media_too_large"),
        ("http://open.test:{port}/endless", "media_too_large"),
        ("http://open.test:{port}/drip", "fetch_failed"),
    ],
)
def test_what_is_refused(path: str, code: str, limits: FetchLimits, port: int) -> None:
    start = time.monotonic()
    with pytest.raises(RequestError) as caught:
        fetch_url(path.format(port=port), limits)
    assert caught.value.code == code, caught.value.message
    assert time.monotonic() - start < 2
    assert "127.0.0" not in caught.value.message


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"),
        *("255.255.255.255", "240.0.0.1", "198.18.0.1", "192.0.2.1", "224.0.0.1", "::1", "::", "fe80::1%eth0"),
        *("::ffff:10.0.0.1", "::ffff:127.0.0.1", "64:ff9b::a00:1", "2002:a00:1::", "::a00:1", "2001:db8::1"),
        *("fc00::1", "ff02::1", "name", ""),
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["93.184.215.14", "8.8.8.8", "2606:2800:21f::1", "::ffff:8.8.8.8"])
def test_addresses_that_are(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address", ["168.63.129.16", "fec0::1", "100.64.0.1", "192.88.99.1", "192.31.196.1", "198.18.0.1", "5f00::1",
    "3fff::1", "2001:2::1", "2620:4f:8000::1", "::ffff:168.63.129.16", "fd00:ec2::254", "ff02::1"],
)  # fmt: skip
def test_reserved_addresses_are_not_public(address: str) -> None:
    assert not is_public(address)
    assert is_public("93.184.215.14")
    assert is_public("2606:4700:4700::1111")
