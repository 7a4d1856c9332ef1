"""Commands that speak MCP over their pipes: bounded lines, and an end with all of their children."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import anyio
import pytest
from mcp import Client
from other_mcp_server import COMMAND

from serve.mcp_servers.pipes import open_pipes


def test_the_official_client_speaks_over_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_OURS", "x")

    async def talk(mode: str) -> str:
        async with Client(open_pipes(COMMAND, {"GIVEN": "y"}, 100_000), mode=mode) as client:
            result = await client.call_tool("environment", {})
            return result.content[0].text  # pyright: ignore[reportAttributeAccessIssue]

    for mode in ("auto", "legacy"):
        names = asyncio.run(talk(mode)).split()
        assert "GIVEN" in names
        assert "SECRET_OF_OURS" not in names


@pytest.mark.parametrize(
    ("script", "n_received"),
    [
        ("exit 0", 0),
        ('echo no json; echo \'{"jsonrpc": "2.0", "method": "x"}\'', 2),
        ("echo '{}'; head -c 200000 /dev/zero; sleep 60", 1),  # the second line is too long
    ],
)
def test_what_a_command_says_ends(script: str, n_received: int) -> None:
    async def listen() -> int:
        n = 0
        async with open_pipes(["sh", "-c", script], {}, 100_000) as (reading, _):
            with anyio.fail_after(20):
                async for _ in reading:
                    n += 1
        return n

    assert asyncio.run(listen()) == n_received


def test_a_command_and_its_children_are_stopped(tmp_path: Path) -> None:
    file = tmp_path / "pids"
    script = f"trap '' TERM; sleep 1000 & echo $$ $! > {file}.part; mv {file}.part {file}; while :; do sleep 1; done"

    async def run() -> None:
        async with open_pipes(["sh", "-c", script], {}, 1000):
            while not file.exists():
                await asyncio.sleep(0.05)

    start = time.monotonic()
    asyncio.run(run())
    assert time.monotonic() - start < 30
    for pid in map(int, file.read_text().split()):
        while is_running(pid):  # killed, which takes a moment
            assert time.monotonic() - start < 30
            time.sleep(0.02)


def is_running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        os.kill(pid, 0)
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_a_command_that_is_not_there_is_told() -> None:
    async def run() -> None:
        async with open_pipes(["/no/such/program"], {}, 1000):
            pass

    with pytest.raises(FileNotFoundError):
        asyncio.run(run())
