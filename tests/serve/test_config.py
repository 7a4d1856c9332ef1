"""Serving arguments: strings from a command line become numbers, and every fault is named."""

from __future__ import annotations

import pytest

from data_pipeline.errors import InputError
from serve.config import ServeArgs


def test_strings_of_a_command_line_are_converted() -> None:
    args = ServeArgs.parse({"bundle": "b", "top_k": "3", "num_gpus": "0.5", "max_pixels": "100"})
    assert (args.top_k, args.num_gpus, args.max_pixels) == (3, 0.5, 100)
    assert ServeArgs.parse(args) is args


def test_all_faults_are_reported_at_once() -> None:
    with pytest.raises(InputError) as caught:
        ServeArgs.parse({"top_k": "0", "buendel": "b"})
    message = str(caught.value)
    assert "'bundle' is missing" in message
    assert "'top_k' is '0'" in message
    assert "'buendel' is unknown" in message
    assert "max_upload_bytes" in message, "the valid names are listed"


def test_replica_bounds_must_be_in_order() -> None:
    with pytest.raises(InputError, match="max_replicas is 1, below min_replicas 2"):
        ServeArgs.parse({"bundle": "b", "min_replicas": 2})
    with pytest.raises(InputError, match="'max_replicas' is 0"):
        ServeArgs.parse({"bundle": "b", "min_replicas": 0, "max_replicas": 0})
    assert ServeArgs.parse({"bundle": "b", "min_replicas": 0}).min_replicas == 0


def test_a_body_may_hold_the_largest_medium_in_base64() -> None:
    args = ServeArgs.parse({"bundle": "b", "max_upload_bytes": 3000})
    assert args.max_body_bytes >= 4000 + args.max_instruction_chars


def test_model_names_are_distinct_and_leave_the_agent_its_suffix() -> None:
    args = ServeArgs.parse({"bundle": "b", "adapters": {"v2": "c"}})
    assert args.bundles == {"toolmm": "b", "v2": "c"}
    with pytest.raises(InputError, match="adapters holds 'toolmm', which is the name of the main model"):
        ServeArgs.parse({"bundle": "b", "adapters": {"toolmm": "c"}})
    for name in ("a b", "x-agent", ""):
        with pytest.raises(InputError, match="is no model name"):
            ServeArgs.parse({"bundle": "b", "adapters": {name: "c"}})


def test_an_mcp_server_is_an_address_or_a_command() -> None:
    servers = {
        "a": "https://example.org/mcp",
        "b": ["npx", "-y", "server"],
        "c": {"url": "http://127.0.0.1:9/mcp", "headers": {"Authorization": "KEY_OF_C"}},
        "d": {"command": ["server"], "environment": ["KEY_OF_D"]},
    }
    args = ServeArgs.parse({"bundle": "b", "mcp_servers": servers})
    assert args.mcp_servers["a"].url == "https://example.org/mcp"
    assert args.mcp_servers["b"].command == ["npx", "-y", "server"]
    assert args.mcp_servers["c"].headers == {"Authorization": "KEY_OF_C"}
    assert ServeArgs.parse(args.model_dump()) == args


@pytest.mark.parametrize(
    ("name", "entry", "words"),
    [
        ("a/b", "https://example.org", "no name of an MCP server"),
        ("", "https://example.org", "no name of an MCP server"),
        ("a", "ftp://example.org", "http:// or https://"),
        ("a", "https://user:key@example.org", "nor an @"),
        ("a", [], "either a url or a command"),
        ("a", {}, "either a url or a command"),
        ("a", {"url": "https://example.org", "command": ["x"]}, "either a url or a command"),
        ("a", {"url": "https://example.org", "environment": ["X"]}, "environment with a command"),
        ("a", {"command": ["x"], "headers": {"X": "Y"}}, "headers go with a url"),
        (
            "a",
            {"url": "https://example.org", "headers": {"Authorization": "Bearer key"}},
            "no environment variable's name",
        ),
        ("a", {"url": "https://example.org", "key": "x"}, "unknown"),
    ],
)
def test_faulty_mcp_servers_are_told(name: str, entry: object, words: str) -> None:
    with pytest.raises(InputError, match=words) as raised:
        ServeArgs.parse({"bundle": "b", "mcp_servers": {name: entry}})
    assert "key@" not in str(raised.value)
    assert "Bearer" not in str(raised.value), "a key that stands where none should is not repeated"


def test_origins_are_as_browsers_send_them() -> None:
    origins = ["https://chat.example.org", "http://localhost:3000", "http://[::1]:3000", "*"]
    assert ServeArgs.parse({"bundle": "b", "cors_origins": origins}).cors_origins == origins
    assert ServeArgs.parse({"bundle": "b"}).cors_origins == []
    for origin in ("chat.example.org", "https://chat.example.org/", "https://Chat.example.org", "null", ""):
        with pytest.raises(InputError, match="cors_origins holds"):
            ServeArgs.parse({"bundle": "b", "cors_origins": [origin]})


def test_an_engine_elsewhere_and_its_address_go_together() -> None:
    args = ServeArgs.parse({"bundle": "b", "engine": "vllm", "vllm_url": "http://127.0.0.1:8100"})
    assert args.vllm_url == "http://127.0.0.1:8100"
    assert ServeArgs.parse({"bundle": "b"}).engine == "local"
    for values in ({"engine": "vllm"}, {"vllm_url": "http://127.0.0.1:8100"}):
        with pytest.raises(InputError, match="go together"):
            ServeArgs.parse({"bundle": "b", **values})
    for url in ("file:///etc/passwd", "http://user:key@host:1", "127.0.0.1:8100"):
        with pytest.raises(InputError, match="vllm_url begins with"):
            ServeArgs.parse({"bundle": "b", "engine": "vllm", "vllm_url": url})
