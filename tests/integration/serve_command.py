"""`python -m serve` as a process of its own; the tests of the command and of the shipped agent share it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.integration.small_service import free_port

PROJECT = Path(__file__).parents[2]
START_S = 300


@dataclass
class ServeCommand:
    """Its address, its process, and the lines that it has printed so far."""

    url: str
    process: subprocess.Popen[str]
    lines: list[str]


@contextmanager
def serving(bundle: Path | str, artifacts: Path, *values: str) -> Iterator[ServeCommand]:
    """Start the command, with further `key=value`, and wait until it says that it is ready."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "serve", f"bundle={bundle}", f"artifacts={artifacts}", *values, "--port", str(port)],
        cwd=PROJECT,
        env={key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(process.stdout or ()), daemon=True)
    reader.start()
    try:
        deadline = time.monotonic() + START_S
        while not any(line.startswith("ready: ") for line in lines):
            assert process.poll() is None, "".join(lines)
            assert time.monotonic() < deadline, "".join(lines)
            time.sleep(0.2)
        yield ServeCommand(f"http://127.0.0.1:{port}", process, lines)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(30)
        reader.join(10)
