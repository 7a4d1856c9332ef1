"""What `make agent` serves: the shipped adapter over the real backbone, by its command, asked over HTTP as people ask."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from data_pipeline.errors import InputError
from model.llm.gguf import find_packaged
from tests.integration.small_service import free_port

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[2]
BUNDLE = PROJECT / "model" / "weights" / "agent_smollm2"
MEDIA = PROJECT.parent / "shared" / "media"
MAX_WEIGHTS_BYTES = 6 * 2**20
START_S = 300


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    try:
        find_packaged("smollm2_135m")
    except InputError as error:
        pytest.skip(str(error))
    port = free_port()
    artifacts = tmp_path_factory.mktemp("artifacts")
    process = subprocess.Popen(
        [sys.executable, "-m", "serve", f"bundle={BUNDLE}", f"artifacts={artifacts}", "--port", str(port)],
        cwd=PROJECT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines: list[str] = []
    assert process.stdout is not None
    reader = threading.Thread(target=lambda: lines.extend(process.stdout or ()), daemon=True)
    reader.start()
    deadline = time.monotonic() + START_S
    while not any(line.startswith("ready: ") for line in lines):
        assert process.poll() is None, "".join(lines)
        assert time.monotonic() < deadline, "".join(lines)
        time.sleep(0.2)
    yield f"http://127.0.0.1:{port}"
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    reader.join(10)
    assert len(lines) == 3, "".join(lines)  # starting, ready, stopping: nothing of Ray's own


@pytest.fixture(scope="module")
def picture() -> Path:
    path = MEDIA / "example-1.jpg"
    if not path.is_file():
        pytest.skip("needs the folder shared/media beside the project")
    return path


def ask(url: str, words: str, picture: Path | None = None) -> tuple[str, list[dict[str, Any]]]:
    """The agent's answer and its steps."""
    parts: list[Any] = [{"type": "text", "text": words}]
    if picture is not None:
        data = base64.b64encode(picture.read_bytes()).decode("ascii")
        parts.append({"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}})
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    answer: Any = client.chat.completions.create(model="toolmm-agent", messages=[{"role": "user", "content": parts}])
    return answer.choices[0].message.content, answer.model_dump()["agent"]["steps"]


def test_what_ships_is_small_and_names_no_machine() -> None:
    weights = sum(path.stat().st_size for path in BUNDLE.rglob("*.safetensors"))
    assert weights <= MAX_WEIGHTS_BYTES
    info = json.loads((BUNDLE / "bundle.json").read_text(encoding="utf-8"))
    assert info["backbone"] == "smollm2_135m"
    assert not re.search(r'"/(?:tmp|home|root|work)', json.dumps(info))


def test_two_tools_run_on_ones_own_picture(url: str, picture: Path) -> None:
    answer, steps = ask(url, "Draw the edges of this picture, then find its size.", picture)
    assert [step["error"] for step in steps] == [None, None]
    assert "edge" in steps[0]["tool"].lower()
    assert steps[0]["artifact"]["media_type"] == "image/png"
    assert steps[1]["tool"] == "local/measure-picture"
    assert "Width 640 pixels, height 480 pixels" in steps[1]["text"]
    assert "640" in answer
    with urllib.request.urlopen(f"{url}{steps[0]['artifact']['path']}", timeout=30) as response:
        assert response.read(4) == b"\x89PNG"


def test_a_greeting_is_answered_without_any_tool(url: str) -> None:
    answer, steps = ask(url, "hi")
    assert steps == []
    assert answer.strip()


def test_no_call_is_made_twice(url: str, picture: Path) -> None:
    for words in ("Find the faces in my photo.", "Improve this picture", "What is the size of this photo?"):
        _, steps = ask(url, words, picture)
        calls = [(step["tool"], json.dumps(step["arguments"], sort_keys=True)) for step in steps]
        assert len(set(calls)) == len(calls)
        assert all(step["tool_id"] for step in steps), "every call is of a tool that exists"
