"""Fetching a medium from an http(s) address that a user names, without being turned against the network around us.

A name is resolved once, every address that it has must be public, and the connection goes to the very address that was
checked; each redirect is checked anew. Environment proxies are not used, and credentials never sent.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from urllib.parse import SplitResult, urljoin, urlsplit

from serve.http.schemas import RequestError

_REDIRECTS = (301, 302, 303, 307, 308)
_BLOCK_BYTES = 64 * 1024
_TUNNELS = tuple(  # IPv6 that carries an IPv4 address, which the system or a router may unwrap
    ipaddress.ip_network(network) for network in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32", "::/96")
)
_UNICAST = ipaddress.ip_network("2000::/3")  # the only part of IPv6 that is given out (IANA)
_RESERVED = tuple(  # by IANA's registries of special addresses, which Python's `is_global` follows in part
    ipaddress.ip_network(network)
    for network in (
        "168.63.129.16/32",  # Azure's own services, under a public number
        "100.64.0.0/10", "192.0.0.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.175.48.0/24",
        "198.18.0.0/15", "2001::/23", "2001:db8::/32", "2620:4f:8000::/48", "3fff::/20",
    )
)  # fmt: skip


@dataclass(frozen=True)
class FetchLimits:
    """Bounds of one fetch.

    Attributes:
        max_bytes: of the medium.
        timeout_s: redirects included, looking up names not.
        max_redirects: how many are followed.
        ports: that may be asked.
    """

    max_bytes: int = 32 * 2**20
    timeout_s: float = 10.0
    max_redirects: int = 3
    ports: tuple[int, ...] = (80, 443)


def fetch_url(url: str, limits: FetchLimits | None = None) -> bytes:
    """Read an address; blocking.

    Raises:
        RequestError: an address that is malformed or not public (400, `url_not_allowed`), too large (413), or one that
            gives nothing (422, `fetch_failed`). What is said does not tell what else there is in this network.
    """
    limits = FetchLimits() if limits is None else limits
    deadline = time.monotonic() + limits.timeout_s
    scheme = ""
    for _ in range(limits.max_redirects + 1):
        parts = _check_url(url, limits)
        if scheme == "https" and parts.scheme == "http":
            raise _not_allowed("It leads from https to http")
        scheme = parts.scheme
        location, data = _request(parts, _public_address(parts), deadline, limits)
        if location is None:
            return data
        try:
            url = urljoin(url, location)
        except ValueError:
            raise _failed("it redirects to no address") from None
    raise _failed(f"it redirects more than {limits.max_redirects} times")


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the open internet."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return is_public(str(found.ipv4_mapped))
        if found not in _UNICAST or any(found in network for network in _TUNNELS):
            return False
    if any(found in network for network in _RESERVED):
        return False
    return found.is_global and not (found.is_multicast or found.is_reserved or found.is_unspecified)


def _check_url(url: str, limits: FetchLimits) -> SplitResult:
    if len(url) > 2048 or not url.isascii() or any(c <= " " or c in "\\\x7f" for c in url):
        raise _not_allowed("It is longer than 2048 characters, or holds white space or other than ASCII characters")
    try:
        parts = urlsplit(url)
        port = _port(parts)
    except ValueError:
        raise _not_allowed("It is malformed") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise _not_allowed("It is no http or https address")
    if parts.username is not None or parts.password is not None:
        raise _not_allowed("It holds a user name")
    if port not in limits.ports:
        raise _not_allowed(f"Its port is not one of {', '.join(map(str, limits.ports))}")
    return parts


def _port(parts: SplitResult) -> int:
    return parts.port or (443 if parts.scheme == "https" else 80)


def _public_address(parts: SplitResult) -> str:
    assert parts.hostname is not None
    try:
        found = socket.getaddrinfo(parts.hostname, _port(parts), type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise _failed("its host is not known") from None
    addresses = [str(entry[4][0]) for entry in found]
    if not addresses or not all(map(is_public, addresses)):
        raise _not_allowed("Its host is not on the open internet")
    return addresses[0]


class _Connection(http.client.HTTPConnection):
    """Connects to an address that was checked, and speaks to it under its name."""

    def __init__(self, parts: SplitResult, address: str, deadline: float) -> None:
        assert parts.hostname is not None
        super().__init__(parts.hostname, _port(parts))
        self._address = address
        self._deadline = deadline
        self._is_tls = parts.scheme == "https"

    def connect(self) -> None:
        left_s = _left(self._deadline)
        plain = socket.create_connection((self._address, self.port), timeout=left_s)
        self.sock = plain
        if self._is_tls:
            self.sock = ssl.create_default_context().wrap_socket(plain, server_hostname=self.host)

    def abort(self) -> None:
        """End whatever the socket is waiting for."""
        if self.sock is not None:
            try:
                self.sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                return  # it is closed already


def _request(parts: SplitResult, address: str, deadline: float, limits: FetchLimits) -> tuple[str | None, bytes]:
    """(where it redirects to, or None; the data)."""
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    connection = _Connection(parts, address, deadline)
    # a timeout of the socket begins anew with every byte that drips in
    watchdog = threading.Timer(_left(deadline), connection.abort)
    watchdog.daemon = True
    watchdog.start()
    try:
        connection.request("GET", path, headers={"Accept-Encoding": "identity", "User-Agent": "toolmm"})
        response = connection.getresponse()
        _left(deadline)
        if response.status in _REDIRECTS:
            return response.getheader("Location", ""), b""
        if response.status != 200:
            raise _failed(f"it answers with HTTP {response.status}")
        if response.getheader("Content-Encoding", "identity").lower() != "identity":
            raise _failed("it answers in a compressed form that was not asked for")
        return None, _read(response, deadline, limits)
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, RequestError):
            raise
        raise _failed("it takes too long" if time.monotonic() >= deadline else "it cannot be read") from None
    finally:
        watchdog.cancel()
        connection.close()


def _read(response: http.client.HTTPResponse, deadline: float, limits: FetchLimits) -> bytes:
    announced = response.getheader("Content-Length", "")
    blocks, n_bytes = [], int(announced[:20]) if announced.isdecimal() else 0
    if n_bytes <= limits.max_bytes:
        n_bytes = 0
        while _left(deadline) and (block := response.read1(_BLOCK_BYTES)):
            n_bytes += len(block)
            if n_bytes > limits.max_bytes:
                break
            blocks.append(block)
        _left(deadline)  # what the watchdog has cut off looks like an end
    if n_bytes > limits.max_bytes:
        raise RequestError(
            f"The medium at the address has more than {limits.max_bytes} bytes; send a smaller one.",
            413,
            "media_too_large",
        )
    if announced.isdecimal() and n_bytes != int(announced[:20]):
        raise _failed("it ends too early")
    return b"".join(blocks)


def _left(deadline: float) -> float:
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise _failed("it takes too long")
    return left_s


def _not_allowed(reason: str) -> RequestError:
    return RequestError(f"{reason}, so the address is not fetched; send a data URL instead.", 400, "url_not_allowed")


def _failed(reason: str) -> RequestError:
    return RequestError(f"The address gives no medium: {reason}; send a data URL instead.", 422, "fetch_failed")
