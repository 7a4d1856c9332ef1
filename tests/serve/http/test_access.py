"""Keys and rates: who is let in, who is not, and that no key leaves its holder."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.errors import InputError
from serve.http.access import AccessError, ApiKeys, Gate, RateLimit, WrongKeys, check_origin, is_loopback

ADA, BOB = "ada-has-a-long-key", "bob-has-another-key"
FREE = RateLimit(0, 1)


def bearer(key: str, scheme: str = "Bearer") -> dict[str, str]:
    return {"authorization": f"{scheme} {key}"}


@pytest.fixture
def keys(tmp_path: Path) -> ApiKeys:
    file = tmp_path / "keys"
    file.write_text(f"# who\nbob:sha256={hashlib.sha256(BOB.encode()).hexdigest()}  # his\n\n")
    return ApiKeys.load({"TOOLMM_API_KEYS": f" ada:{ADA}, a-key-without-a-name ", "TOOLMM_API_KEYS_FILE": str(file)})


def test_right_keys_are_let_in_from_anywhere(keys: ApiKeys) -> None:
    gate = Gate(keys, FREE)
    assert gate.admit(bearer(ADA), "203.0.113.5") == "ada"
    assert gate.admit(bearer(BOB, "bearer"), None) == "bob"
    assert gate.admit(bearer("a-key-without-a-name"), "::1").startswith("key-")
    assert ADA not in repr(keys)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"authorization": "Bearer  "},
        bearer(ADA, "Basic"),
        bearer(ADA[:-1]),
        bearer(ADA + "x"),
        bearer("é" * 20 + "\udc80"),
        bearer(hashlib.sha256(BOB.encode()).hexdigest()),
    ],
)
def test_anything_else_is_refused_even_on_loopback(headers: dict[str, str], keys: ApiKeys) -> None:
    with pytest.raises(AccessError) as caught:
        Gate(keys, FREE).admit({"host": "localhost", **headers}, "127.0.0.1")
    assert (caught.value.status, caught.value.code) == (401, "invalid_api_key")
    assert caught.value.headers == {"WWW-Authenticate": "Bearer"}
    assert ADA[:8] not in caught.value.message


@pytest.mark.parametrize(
    ("headers", "client", "is_let_in"),
    [
        ({"host": "localhost:8000"}, "127.0.0.1", True),
        ({"host": "127.0.0.1"}, "127.0.0.7", True),
        ({"host": "[::1]:8000"}, "::1", True),
        ({"host": "127.0.0.1:8000"}, "::ffff:127.0.0.1", True),
        ({"host": "localhost"}, "192.168.1.2", False),
        ({"host": "localhost"}, None, False),
        ({"host": "evil.example"}, "127.0.0.1", False),
        ({"host": "localhost.evil.example"}, "127.0.0.1", False),
        ({}, "127.0.0.1", False),
        ({"host": "localhost", "x-forwarded-for": "203.0.113.5"}, "127.0.0.1", False),
    ],
)
def test_without_keys_this_machine_alone_asks(headers: dict[str, str], client: str | None, is_let_in: bool) -> None:
    gate = Gate(ApiKeys.load({}), FREE)
    if is_let_in:
        assert gate.admit(headers, client) == "local"
    else:
        with pytest.raises(AccessError, match="own machine"):
            gate.admit(headers, client)


@pytest.mark.parametrize(
    "text", ["short", "ada:short", "ada:schlüssel-mit-umlaut", f"ada:{ADA},ada:{BOB}", f"ada:{ADA},bob:{ADA}", ":"]
)
def test_bad_keys_are_told_by_their_place(text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"entry [12] of TOOLMM_API_KEYS") as caught:
        ApiKeys.load({"TOOLMM_API_KEYS": text})
    assert ADA not in str(caught.value)
    assert "schl" not in str(caught.value)
    with pytest.raises(InputError, match="cannot be read"):
        ApiKeys.load({"TOOLMM_API_KEYS_FILE": "/no/such/file"})
    (tmp_path / "empty").write_text("# none yet\n")
    with pytest.raises(InputError, match="holds no key"):
        ApiKeys.load({"TOOLMM_API_KEYS_FILE": str(tmp_path / "empty")})


def test_behind_haproxy_keys_are_needed() -> None:
    """Ray Serve's HAProxy hides the client's address: without keys, strangers would pass for this machine."""
    behind = {"RAY_SERVE_ENABLE_HA_PROXY": "1"}
    with pytest.raises(InputError, match=r"needs keys: set TOOLMM_API_KEYS, or unset RAY_SERVE_ENABLE_HA_PROXY\."):
        ApiKeys.load(behind)
    assert ApiKeys.load({**behind, "TOOLMM_API_KEYS": "a-key-that-is-long-enough"}).digests
    assert not ApiKeys.load({"RAY_SERVE_ENABLE_HA_PROXY": "0"}).digests


def test_rates_are_per_key(keys: ApiKeys) -> None:
    now = [0.0]
    gate = Gate(keys, RateLimit(per_minute=30, burst=3, clock=lambda: now[0]))
    for _ in range(3):
        gate.admit(bearer(ADA), None)
    with pytest.raises(AccessError) as caught:
        gate.admit(bearer(ADA), None)
    assert (caught.value.status, caught.value.code) == (429, "rate_limit_exceeded")
    assert caught.value.headers == {"Retry-After": "2"}
    gate.admit(bearer(BOB), None)
    now[0] += 2.0
    gate.admit(bearer(ADA), None)
    with pytest.raises(AccessError):
        gate.admit(bearer(ADA), None)
    now[0] += 1000.0
    for _ in range(3):  # a long rest fills the bucket and no more
        gate.admit(bearer(ADA), None)
    with pytest.raises(AccessError):
        gate.admit(bearer(ADA), None)


def test_loopback_addresses() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "::1", "::ffff:127.0.0.1")))
    assert not any(map(is_loopback, ("10.0.0.1", "::ffff:10.0.0.1", "localhost", "")))


@pytest.mark.parametrize(
    ("headers", "is_fine"),
    [
        ({"host": "127.0.0.1:8000"}, True),
        ({"host": "127.0.0.1:8000", "origin": "http://127.0.0.1:8000"}, True),
        ({"host": "Tools.example", "origin": "https://tools.example"}, True),
        ({"host": "127.0.0.1:8000", "origin": "http://127.0.0.1:9000"}, False),
        ({"host": "127.0.0.1:8000", "origin": "https://evil.example"}, False),
        ({"host": "127.0.0.1:8000", "origin": "null"}, False),
        ({"host": "127.0.0.1:8000", "origin": ""}, False),
    ],
)
def test_pages_of_another_origin_are_refused(headers: dict[str, str], is_fine: bool) -> None:
    if is_fine:
        check_origin(headers)
        return
    with pytest.raises(AccessError) as raised:
        check_origin(headers)
    assert (raised.value.status, raised.value.code) == (403, "bad_origin")


def test_pages_of_named_origins_are_not_refused() -> None:
    headers = {"host": "127.0.0.1:8000", "origin": "https://chat.example"}
    for origins in (["https://chat.example"], ["*"]):
        check_origin(headers, origins)
    with pytest.raises(AccessError):
        check_origin(headers, ["https://other.example"])


LOCAL = {"host": "127.0.0.1:8000"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "https://evil.example", "sec-fetch-site": "cross-site"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"origin": "http://127.0.0.1:3000", "sec-fetch-site": "same-site"}, 403),
        ({"via": "1.1 proxy"}, 401),
        ({"x-forwarded-host": "a.example"}, 401),
        ({"cf-connecting-ip": "203.0.113.5"}, 401),
        ({"origin": "http://127.0.0.1:8000", "sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-site": "none"}, 200),
        ({"origin": "https://chat.example", "sec-fetch-site": "cross-site"}, 200),
    ],
)
def test_without_keys_no_web_page_elsewhere_and_no_proxy_asks(headers: dict[str, str], status: int) -> None:
    gate = Gate(ApiKeys.load({}), FREE, ["https://chat.example"])
    if status == 200:
        assert gate.admit(LOCAL | headers, "127.0.0.1") == "local"
        return
    with pytest.raises(AccessError) as caught:
        gate.admit(LOCAL | headers, "127.0.0.1")
    assert caught.value.status == status


def test_wrong_keys_hold_their_address_up_and_nobody_else(keys: ApiKeys) -> None:
    now = [0.0]
    gate = Gate(keys, FREE, wrong_keys=WrongKeys(3, lambda: now[0]))
    gate.admit(bearer(ADA), "203.0.113.9")

    def guess(address: str, key: str = "a-wrong-key-of-length") -> int:
        try:
            gate.admit(bearer(key), address)
        except AccessError as error:
            return error.status
        return 200

    statuses = [guess(f"2001:db8:0:1::{i}") for i in range(6)]
    assert statuses == [401, 401, 401, 401, 429, 429]
    assert guess("2001:db8:0:1::7", ADA) == 429, "a guesser does not learn that it was right"
    assert guess("2001:db8:0:2::1", ADA) == 200
    assert [guess("203.0.113.9") for _ in range(6)] == [401] * 6
    assert guess("203.0.113.9", BOB) == 200
    now[0] += 60
    assert guess("2001:db8:0:1::7", ADA) == 200


def test_keys_leave_the_environment_that_others_can_read() -> None:
    code = (
        "from serve.http.access import build_gate; from serve.config import ServeArgs; import os\n"
        "build_gate(ServeArgs(bundle='b'))\n"
        "print(open('/proc/self/environ').read().count('ada-has'), 'TOOLMM_API_KEYS' in os.environ)"
    )
    environment = os.environ | {"TOOLMM_API_KEYS": f"ada:{ADA}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True, text=True)
    assert done.stdout.split() == ["0", "False"]
