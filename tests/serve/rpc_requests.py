"""Requests to /mcp that a machine makes up: JSON-RPC in every state of disrepair, with tools and media that exist."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

METHODS = (
    "tools/call", "tools/call", "tools/list", "initialize", "ping", "server/discover", "notifications/initialized",
    "notifications/cancelled", "resources/list", "resources/read", "prompts/get", "completion/complete",
    "logging/setLevel", "subscriptions/listen", "tasks/get", "tools/Call", "__init__",
)  # fmt: skip
VERSIONS = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25", "2026-07-28", "1999-01-01", "", "\xff")
ACCEPTS = ("application/json, text/event-stream", "application/json", "text/event-stream", "*/*", "text/html")
BROKEN = (
    b"", b"{", b"null", b"[]", b"[" * 5000, b"\xff\xfe", b'{"jsonrpc": "2.0", "id": NaN, "method": "ping"}',
    b'{"jsonrpc": "2.0", "id": 1, "method": "\\ud800"}', b'{"id": 1' + b"0" * 5000 + b', "jsonrpc": "2.0"}',
    b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":' + b'{"arguments":' * 900 + b"{}" + b"}" * 901,
)  # fmt: skip

TEXTS = ("", "a", "\0", "\ud800", "\u202e", "tools/call", "x" * 3000, "</s>", "../..", "%s%n")


@dataclass(frozen=True)
class RpcRequest:
    """A body and its headers."""

    body: bytes
    headers: Mapping[str, bytes]


def make_requests(n: int, tools: Mapping[str, Sequence[str]], values: Sequence[Any]) -> list[RpcRequest]:
    """The same requests every time.

    Args:
        n: how many.
        tools: name -> its arguments' names.
        values: that may stand as an argument's, beside anything else.
    """
    chance = random.Random(3)
    return [_make(chance, tools, values) for _ in range(n)]


def _make(chance: random.Random, tools: Mapping[str, Sequence[str]], values: Sequence[Any]) -> RpcRequest:
    is_usual = chance.random() < 0.8
    headers = {
        "Content-Type": "application/json",
        "Accept": ACCEPTS[0] if is_usual else chance.choice(ACCEPTS),
        "MCP-Protocol-Version": chance.choice(VERSIONS[3:5] if is_usual else VERSIONS),
    }
    if chance.random() < 0.1:
        return RpcRequest(chance.choice(BROKEN), _encode(headers))
    method = "tools/call" if chance.random() < 0.5 else chance.choice(METHODS)
    message: dict[str, Any] = {"jsonrpc": "2.0", "id": chance.randrange(99), "method": method, "params": {}}
    if method == "tools/call":
        name = chance.choice(sorted(tools))
        arguments = {argument: _value(chance, values) for argument in tools[name]}
        message["params"] = {"name": name, "arguments": arguments}
    elif method == "initialize":
        client = {"name": chance.choice(TEXTS), "version": "1"}
        message["params"] = {"protocolVersion": chance.choice(VERSIONS), "capabilities": {}, "clientInfo": client}
    if headers["MCP-Protocol-Version"] == "2026-07-28":  # wants the envelope in the request itself
        message["params"]["_meta"] = {
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientInfo": {"name": "tests", "version": "1"},
            "io.modelcontextprotocol/clientCapabilities": {},
        }
        headers |= {"Mcp-Method": method, "Mcp-Name": message["params"].get("name", "")}
    for _ in range(chance.choice((0, 0, 0, 1, 2))):
        _break(chance, message)
    whole: Any = [message] * chance.randrange(4) if chance.random() < 0.05 else message
    return RpcRequest(json.dumps(whole).encode(), _encode(headers))


def _break(chance: random.Random, message: dict[str, Any]) -> None:
    """Leave something out, or put something of another kind in its place."""
    place, inner = message, message.get("params")
    while isinstance(inner, dict) and inner and chance.random() < 0.7:
        place = inner
        inner = chance.choice(list(inner.values()))
    key = chance.choice([*place, chance.choice(TEXTS)])
    if chance.random() < 0.4:
        place.pop(key, None)
    else:
        place[key] = _anything(chance)


def _value(chance: random.Random, values: Sequence[Any]) -> Any:
    return chance.choice(values) if chance.random() < 0.8 else _anything(chance)


def _anything(chance: random.Random, depth: int = 3) -> Any:
    kind = chance.randrange(8 if depth else 6)
    if kind == 6:
        return [_anything(chance, depth - 1) for _ in range(chance.randrange(4))]
    if kind == 7:
        return {chance.choice(TEXTS): _anything(chance, depth - 1) for _ in range(chance.randrange(4))}
    return (None, chance.random() < 0.5, chance.randint(-(2**70), 2**70), -0.5, 1e308, chance.choice(TEXTS))[kind]


def _encode(headers: Mapping[str, str]) -> dict[str, bytes]:
    return {name: value.encode("latin-1") for name, value in headers.items()}
