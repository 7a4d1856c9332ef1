"""Addresses of this machine itself, which no proxy of the environment can reach."""

from __future__ import annotations

import ipaddress
import urllib.request
from typing import Any
from urllib.parse import urlsplit


def is_loopback(url: str) -> bool:
    """Whether an address is `localhost`, ::1 or in 127.0.0.0/8."""
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, or no address at all
        return False


def open_url(request: str | urllib.request.Request, timeout_s: float) -> Any:
    """`urllib.request.urlopen`, but past the proxies of the environment where the address is this machine's own.

    Args:
        request: an address, or a request with more to it.
        timeout_s: of each step, such as connecting.

    Returns:
        the response, to be used as a context manager.

    Raises:
        URLError: as `urlopen`, and its HTTPError.
    """
    url = request if isinstance(request, str) else request.full_url
    proxies = [urllib.request.ProxyHandler({})] if is_loopback(url) else []
    return urllib.request.build_opener(*proxies).open(request, timeout=timeout_s)
