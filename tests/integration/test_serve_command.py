"""`python -m serve`: one command from a bundle to a page, a tool that runs beside the models, and a quiet end."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.integration.small_service import free_port, make_bundle, make_encoder, picture

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[2]
START_S = 300


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[str], list[str]]]:
    """The service's address, its process, and the lines that it prints."""
    bundle = make_bundle(tmp_path / "bundle", tmp_path / "backbone", make_encoder(tmp_path / "encoder"))
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "serve", f"bundle={bundle}", f"artifacts={tmp_path / 'artifacts'}", "--port", str(port)],
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
        yield f"http://127.0.0.1:{port}", process, lines
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(30)
        reader.join(10)


def test_one_command_serves_models_page_and_tools(served: tuple[str, subprocess.Popen[str], list[str]]) -> None:
    url, process, lines = served
    assert "<html" in httpx.get(url).text
    asked = {"instruction": "Improve this picture", "media": {"data": base64.b64encode(picture()).decode()}, "k": 1}
    ranked = httpx.post(f"{url}/v1/tools/select", json=asked, timeout=60)
    assert len(ranked.json()["tools"]) >= 1
    uploaded = httpx.post(f"{url}/v1/artifacts", files={"file": picture(size=(40, 50))}, timeout=60).json()
    call = {"arguments": {"image": uploaded["id"]}}
    answer = httpx.post(f"{url}/v1/tools/local/measure-picture/invoke", json=call, timeout=120).json()
    assert answer["text"] in ("Width 50 pixels, height 40 pixels.", "Width 40 pixels, height 50 pixels.")
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    time.sleep(0.5)
    assert [line.partition(" ")[0].strip(":\n") for line in lines] == ["starting", "ready", "stopping"], "".join(lines)
