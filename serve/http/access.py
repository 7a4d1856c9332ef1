"""Who may ask, how often and how much at once: API keys, compared in constant time and kept as hashes alone, and limits
for each.

Without keys the service answers this machine alone: a request must come from a loopback address, not through a proxy,
must name this machine as its host, and must not come from a web page elsewhere, which could otherwise ask through a
visitor's browser.
"""

from __future__ import annotations

import ctypes
import hashlib
import hmac
import ipaddress
import math
import os
import re
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from starlette.middleware.cors import CORSMiddleware

from data_pipeline.errors import InputError
from serve.config import ServeArgs
from serve.http.schemas import RequestError
from serve.page import routes as page

KEYS_VARIABLE = "TOOLMM_API_KEYS"
KEYS_FILE_VARIABLE = "TOOLMM_API_KEYS_FILE"
HAPROXY_VARIABLE = "RAY_SERVE_ENABLE_HA_PROXY"  # Ray Serve's
LOCAL_CALLER = "local"
MIN_KEY_CHARS = 16
OPEN_PATHS = ("/healthz", *page.OPEN_PATHS)  # answered without a key; /metrics needs one, as it names what is asked for

_ENTRY = re.compile(r"(?:(?P<name>[\w-]{1,64}):)?(?P<key>[!-~]+)", re.ASCII)
_HASHED = re.compile(r"sha256=(?P<digest>[0-9a-f]{64})", re.ASCII)
_MAX_BUCKETS = 10_000
_WRONG_KEYS_PER_MINUTE = 30
_KNOWN_ADDRESS_S = 3600.0  # how long an address that sent a right key is not held up by wrong ones
_PROXY_HEADERS = {
    "forwarded", "via", "x-real-ip", "x-client-ip", "x-cluster-client-ip", "true-client-ip", "cf-connecting-ip",
    "fastly-client-ip", "fly-client-ip", "x-azure-clientip", "x-envoy-external-address", "x-original-host", "cdn-loop",
}  # fmt: skip
_PROXY_PREFIXES = ("x-forwarded", "x-original-forwarded", "x-appengine-")


class AccessError(RequestError):
    """A request that may not be answered (401, 403), or not yet (429); `headers` go with the answer."""

    def __init__(self, message: str, status: int, code: str, headers: Mapping[str, str]) -> None:
        super().__init__(message, status, code)
        self.headers = dict(headers)


@dataclass(frozen=True)
class ApiKeys:
    """The keys that are let in: name -> sha256 of the key. The keys themselves are not kept."""

    digests: Mapping[str, bytes]

    @classmethod
    def load(cls, environment: Mapping[str, str]) -> ApiKeys:
        """Read keys from the variable TOOLMM_API_KEYS (separated by commas or white space) and from the file that
        TOOLMM_API_KEYS_FILE names (one a line, `#` begins a comment).

        An entry is `key`, `name:key` or `name:sha256=<hex digest of the key>`; names are for logs and rates.

        Raises:
            InputError: an entry that is malformed, too short or there twice, told by its place and never by its text;
                or no key behind HAProxy, which hides who asks.
        """
        entries = [
            (f"entry {i} of {KEYS_VARIABLE}", text)
            for i, text in enumerate(re.split(r"[,\s]+", environment.get(KEYS_VARIABLE, "").strip(", \t\n")), start=1)
            if text
        ]
        path = environment.get(KEYS_FILE_VARIABLE, "")
        if path:
            try:
                lines = Path(path).read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise InputError(f"{KEYS_FILE_VARIABLE} names {path}, which cannot be read; correct it.") from error
            texts = [line.partition("#")[0].strip() for line in lines]
            if not any(texts):  # rather than to let everyone in
                raise InputError(f"{KEYS_FILE_VARIABLE} names {path}, which holds no key; write one a line.")
            entries += [(f"line {i} of {path}", text) for i, text in enumerate(texts, start=1) if text]
        digests: dict[str, bytes] = {}
        for where, text in entries:
            name, digest = _parse_entry(text, where)
            if name in digests or digest in digests.values():
                raise InputError(f"{where}: its name or its key is there twice; remove one.")
            digests[name] = digest
        if not digests and environment.get(HAPROXY_VARIABLE) == "1":
            raise InputError(
                f"behind HAProxy ({HAPROXY_VARIABLE}=1) every request seems to come from this machine, so the service "
                f"needs keys: set {KEYS_VARIABLE}, or unset {HAPROXY_VARIABLE}."
            )
        return cls(digests)

    def find(self, key: str) -> str | None:
        """The name of a key, or None; takes as long whatever the key is."""
        digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
        found = None
        for name, known in self.digests.items():
            if hmac.compare_digest(digest, known):
                found = name
        return found


class RateLimit:
    """A token bucket for each caller; every ingress replica has its own."""

    def __init__(self, per_minute: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`per_minute` requests on average, `burst` at once after a rest; 0 per minute = no limit."""
        self._per_s = per_minute / 60
        self._burst = burst
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # caller -> (tokens, when)

    def take(self, caller: str) -> float:
        """Count a request; returns 0 where it may pass, or else the seconds until one may."""
        if self._per_s <= 0:
            return 0.0
        now = self._clock()
        tokens, then = self._buckets.get(caller, (float(self._burst), now))
        tokens = min(self._burst, tokens + (now - then) * self._per_s)
        wait_s = 0.0 if tokens >= 1 else (1 - tokens) / self._per_s
        self._buckets[caller] = (tokens if wait_s else tokens - 1, now)
        self._buckets.move_to_end(caller)
        if len(self._buckets) > _MAX_BUCKETS:
            self._buckets.popitem(last=False)
        return wait_s


class PlacesAtOnce:
    """How many requests of each caller may be under way; every ingress replica has its own."""

    def __init__(self, per_caller: int) -> None:
        self._per_caller = per_caller
        self._taken = Counter[str]()

    @contextmanager
    def take(self, caller: str) -> Iterator[None]:
        """Hold one of a caller's places; `AccessError` (429) where none is left."""
        if self._taken[caller] >= self._per_caller:
            raise AccessError(
                f"{self._per_caller} requests with this key are under way, and no more may be; wait for one to end.",
                429,
                "too_many_at_once",
                {"Retry-After": "1"},
            )
        self._taken[caller] += 1
        try:
            yield
        finally:
            self._taken[caller] -= 1


class WrongKeys:
    """Holds up addresses that send wrong keys: after some of them, no key from there is looked at for a while.

    An address from which a right key came lately, such as a proxy's, is not held up: else a stranger behind it could
    keep everyone out.
    """

    def __init__(self, per_minute: int = _WRONG_KEYS_PER_MINUTE, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = RateLimit(per_minute, per_minute, clock)
        self._clock = clock
        self._held: OrderedDict[str, float] = OrderedDict()  # network -> until when
        self._known: OrderedDict[str, float] = OrderedDict()  # network -> until when

    def held_s(self, address: str | None) -> float:
        """Seconds for which no key from there is looked at; 0: none."""
        network, now = _network_of(address), self._clock()
        return 0.0 if self._known.get(network, 0.0) > now else max(0.0, self._held.get(network, 0.0) - now)

    def note(self, address: str | None, *, is_right: bool) -> None:
        """A key came from there."""
        network, now = _network_of(address), self._clock()
        if is_right:
            _remember(self._known, network, now + _KNOWN_ADDRESS_S)
        else:
            wait_s = self._rate.take(network)
            if wait_s:
                _remember(self._held, network, now + wait_s)


def _remember(untils: OrderedDict[str, float], network: str, until: float) -> None:
    untils[network] = until
    untils.move_to_end(network)
    if len(untils) > _MAX_BUCKETS:
        untils.popitem(last=False)


def _network_of(address: str | None) -> str:
    """What one caller can choose its address from: of IPv6 usually the last 64 bits."""
    try:
        found = ipaddress.ip_address((address or "").partition("%")[0])
    except ValueError:
        return address or ""
    if isinstance(found, ipaddress.IPv6Address):
        return str(found.ipv4_mapped or ipaddress.ip_network((found, 64), strict=False))
    return str(found)


class Gate:
    """Lets requests in. `origins` are web pages elsewhere that may ask where there are no keys."""

    def __init__(
        self, keys: ApiKeys, rate: RateLimit, origins: Collection[str] = (), wrong_keys: WrongKeys | None = None
    ) -> None:
        self._keys = keys
        self._rate = rate
        self._origins = origins
        self._wrong_keys = WrongKeys() if wrong_keys is None else wrong_keys

    def admit(self, headers: Mapping[str, str], client_host: str | None) -> str:
        """Check a request before anything of its body is read.

        Args:
            headers: by lower-case names.
            client_host: the address that the connection comes from, or None where that is not known.

        Returns:
            the caller's name, for logs.

        Raises:
            AccessError: no key, a wrong one (401), a web page elsewhere (403), too many requests or wrong keys (429).
        """
        caller = self._identify(headers, client_host)
        wait_s = self._rate.take(caller)
        if wait_s:
            raise AccessError(
                "Too many requests with this key; try again later.",
                429,
                "rate_limit_exceeded",
                {"Retry-After": str(math.ceil(wait_s))},
            )
        return caller

    def _identify(self, headers: Mapping[str, str], client_host: str | None) -> str:
        if not self._keys.digests:
            if not _is_local(headers, client_host):
                raise _unauthorized("This service has no API keys, so it answers its own machine alone; set up keys.")
            if headers.get("origin") not in self._origins:
                check_origin(headers)
                if headers.get("sec-fetch-site", "none").lower() not in ("none", "same-origin"):
                    raise _bad_origin()
            return LOCAL_CALLER
        held_s = self._wrong_keys.held_s(client_host)
        if held_s:
            wait = {"Retry-After": str(math.ceil(held_s))}
            raise AccessError("Too many wrong API keys from there; try again later.", 429, "rate_limit_exceeded", wait)
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise _unauthorized("No API key was sent; send the header 'Authorization: Bearer <key>'.")
        name = self._keys.find(key.strip())
        self._wrong_keys.note(client_host, is_right=name is not None)
        if name is None:
            raise _unauthorized("The API key is wrong; check it.")
        return name


def build_gate(args: ServeArgs) -> Callable[[Request], Any]:
    """A dependency that lets a request in until it ends, or raises `AccessError`; the keys come from the environment.

    Raises:
        InputError: the keys are malformed (`ApiKeys.load`), or every web page may ask and there are none.
    """
    keys = ApiKeys.load(os.environ)
    forget_keys()
    if "*" in args.cors_origins and not keys.digests:
        raise InputError(
            "cors_origins holds '*' and the service has no API keys, so every web page that is open on this machine "
            f"could ask it; name the pages' origins, or set {KEYS_VARIABLE}."
        )
    rate = RateLimit(args.requests_per_minute, max(1, int(args.requests_per_minute)))
    gate = Gate(keys, rate, args.cors_origins)
    places = PlacesAtOnce(args.requests_at_once)

    async def admit(request: Request) -> AsyncIterator[None]:
        if request.url.path in OPEN_PATHS:
            yield
            return
        caller = gate.admit(request.headers, request.client.host if request.client else None)
        request.state.caller = caller
        if not keys.digests:  # there is nobody else whose place one might take
            yield
            return
        with places.take(caller):  # until the answer has gone out, to the end of its stream
            yield

    return admit


def check_origin(headers: Mapping[str, str], origins: Collection[str] = ()) -> None:
    """Refuse what a web page of another origin sends: the Model Context Protocol demands it of its servers, since their
    requests are such as a page might send to a service on its visitor's machine. Programs send no Origin.

    Args:
        headers: by lower-case names.
        origins: that may ask all the same; "*" for all.

    Raises:
        AccessError: an Origin (RFC 6454) that is neither the host that was asked nor one of these (403).
    """
    origin = headers.get("origin")
    if origin in origins or "*" in origins:
        return
    if origin is not None and origin.lower().partition("://")[2] != headers.get("host", "").lower():
        raise _bad_origin()


def forget_keys() -> None:
    """Take the keys out of this process' environment, and out of what /proc/<pid>/environ shows of it: removing a
    variable leaves its text in memory."""
    if KEYS_VARIABLE in os.environ:
        getenv = ctypes.CDLL(None).getenv
        getenv.restype = ctypes.c_void_p
        address = getenv(KEYS_VARIABLE.encode())
        if address:
            ctypes.memset(address, 0, len(ctypes.string_at(address)))
        del os.environ[KEYS_VARIABLE]


def _bad_origin() -> AccessError:
    return AccessError("This comes from a web page of another origin, which may not ask here.", 403, "bad_origin", {})


def add_cors(api: FastAPI, origins: list[str]) -> None:
    """Let web pages of these origins ask, and read what is answered (CORS, by the Fetch standard). A page sends its key
    in a header, so no cookies are let through."""
    if origins:
        api.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "HEAD", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=["X-Request-ID", "Retry-After"],
        )


def _parse_entry(text: str, where: str) -> tuple[str, bytes]:
    entry = _ENTRY.fullmatch(text)
    if entry is None:
        raise InputError(f"{where} is no API key; write key, name:key or name:sha256=<digest>, in visible ASCII.")
    hashed = _HASHED.fullmatch(entry["key"])
    if hashed is None and len(entry["key"]) < MIN_KEY_CHARS:
        raise InputError(f"{where} has {len(entry['key'])} characters; an API key needs at least {MIN_KEY_CHARS}.")
    digest = bytes.fromhex(hashed["digest"]) if hashed else hashlib.sha256(entry["key"].encode()).digest()
    return entry["name"] or f"key-{digest.hex()[:8]}", digest


def _unauthorized(message: str) -> AccessError:
    return AccessError(message, 401, "invalid_api_key", {"WWW-Authenticate": "Bearer"})


def _is_local(headers: Mapping[str, str], client_host: str | None) -> bool:
    names = [name.lower() for name in headers]
    if client_host is None or any(name in _PROXY_HEADERS or name.startswith(_PROXY_PREFIXES) for name in names):
        return False
    host = headers.get("host", "").lower()
    name = host.partition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
    return is_loopback(client_host) and (name == "localhost" or is_loopback(name))


def is_loopback(address: str) -> bool:
    """Whether an IP address (not a name) is this machine's own."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return found.is_loopback or bool(
        isinstance(found, ipaddress.IPv6Address) and getattr(found.ipv4_mapped, "is_loopback", 0)
    )
