"""vLLM itself behind the predictor's engine: on a real language model, it answers as the engine in this process does.

It runs where `TOOLMM_VLLM_PYTHON` names the Python of an environment with vLLM (docs/engines.md); the cores may be a
CPU's. What it measures, it prints as JSON (`-s`).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import httpx
import numpy as np
import pytest
from whole_turn import write_whole

from data_pipeline.batches.encoding import encode_question
from data_pipeline.errors import InputError
from data_pipeline.records.dialogue import render_call, render_dialogue_prompt
from data_pipeline.records.schema import Turn
from model.decode.tools import Prompt
from model.decode.turn_types import TurnArgument, TurnRequest, TurnTool, WrittenTurn
from model.llm.bundle import Bundle, load_bundle
from model.llm.gguf import convert_backbone
from serve.engine.answering import Engine
from serve.engine.choices import Question
from serve.engine.messages import Ranking
from serve.engine.vllm_engine import API_KEY_VARIABLE, VllmEngine
from tests.integration.serve_command import PROJECT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

PYTHON_VARIABLE = "TOOLMM_VLLM_PYTHON"
KEY = "key-of-the-tests"
TOOL_IDS = ("local/detect-edges", "local/denoise-image", "local/measure-picture")
_T = TypeVar("_T")
QUESTIONS = (
    ("Improve this picture", True, 5),
    ("Draw the edges of this picture", True, 3),
    ("What is the weather?", False, 5),
    ("Make the sound louder", True, 1),
    ("Turn this text into speech", False, 40),
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The shipped agent, as if it had not learnt to find cards: vLLM gives no hidden states."""
    try:
        convert_backbone("smollm2_135m", PROJECT / "runs" / "backbones")
    except InputError as error:
        pytest.skip(f"the language model is not here: {error}")
    folder = tmp_path_factory.mktemp("vllm") / "bundle"
    shutil.copytree(PROJECT / "model" / "weights" / "agent_smollm2", folder)
    info = json.loads((folder / "bundle.json").read_text())
    info["resolved_config"]["train"]["loss"]["retrieval"] = 0
    (folder / "bundle.json").write_text(json.dumps(info))
    return load_bundle(str(folder))


@pytest.fixture(scope="module")
def server(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    python = os.environ.get(PYTHON_VARIABLE)
    if not python:
        pytest.skip(f"{PYTHON_VARIABLE} names no Python of an environment with vLLM (docs/engines.md)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = f"--dtype float32 --enforce-eager --max-model-len 2048 --max-num-seqs 16 --host 127.0.0.1 --port {port}"
    options += " --enable-lora --max-lora-rank 8 --enable-prefix-caching --enable-prompt-embeds"
    options += " --generation-config vllm --enable-prompt-tokens-details --served-model-name backbone"
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", bundle.backbone_source()]
    command += [*options.split(), "--lora-modules", f"{bundle.revision}={bundle.adapter_folder}"]
    # else embeddings are wrapped too, and a batch of prompts with and without media ends the server (docs/engines.md)
    adapter = json.loads((bundle.adapter_folder / "adapter_config.json").read_text())
    command += ["--lora-target-modules", *adapter["target_modules"]]
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
    environment = {**os.environ, **environment, "VLLM_API_KEY": KEY, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    log = tmp_path_factory.mktemp("vllm-log") / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, cwd=log.parent
        )
        try:
            _wait_until_ready(process, f"http://127.0.0.1:{port}/health", log)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(60)


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + 1500
    while time.monotonic() < end:
        assert process.poll() is None, f"vLLM ended: {log.read_text(errors='replace')[-3000:]}"
        try:
            if httpx.get(url, timeout=10).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(1)
    raise AssertionError(f"vLLM is not ready: {log.read_text(errors='replace')[-3000:]}")


@pytest.fixture(scope="module")
def local(bundle: Bundle) -> Engine:
    return Engine({"agent": bundle}, "cpu", "float32", prefix_cache_bytes=2**28)


@pytest.fixture(scope="module")
def remote(bundle: Bundle, server: str) -> Iterator[VllmEngine]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(API_KEY_VARIABLE, KEY)
        yield VllmEngine({"agent": bundle}, server, timeout_s=300.0, dtype="float32")


def _report(what: str, **numbers: object) -> None:
    load = round(os.getloadavg()[0], 1)
    print(json.dumps({"what": what, **numbers, "load_average": load, "cores": os.cpu_count()}))


def test_the_exact_best_tools_are_the_same(bundle: Bundle, local: Engine, remote: VllmEngine) -> None:
    rng = np.random.default_rng(0)
    here, there, alone, gap = [], [], [], 0.0
    questions = []
    for words, has_medium, k in QUESTIONS:
        vector = rng.normal(size=128).astype(np.float32) if has_medium else None
        prompt = Prompt(encode_question(local.tokenizer, words, has_medium, ()).prompt_ids, vector)
        questions.append(Question("agent", prompt, k, None))
    for question in questions:
        expected, seconds = _timed(lambda question=question: local.rank([question])[0])
        here.append(seconds)
        found, seconds = _timed(lambda question=question: remote.rank(question))
        there.append(seconds)
        assert isinstance(expected, Ranking)
        assert [tool.tool_id for tool, _ in found.tools] == [tool.tool_id for tool, _ in expected.tools]
        gap = max(gap, *(abs(p - q) for (_, p), (_, q) in zip(found.tools, expected.tools, strict=True)))
        alone.append(found)
    with ThreadPoolExecutor(len(questions)) as threads:  # prompts with media and without in the same batches
        found_together, together = _timed(lambda: list(threads.map(remote.rank, questions)))
    for one, other in zip(alone, found_together, strict=True):
        assert [tool.tool_id for tool, _ in one.tools] == [tool.tool_id for tool, _ in other.tools]
        gap = max(gap, *(abs(p - q) for (_, p), (_, q) in zip(one.tools, other.tools, strict=True)))
    _, batch = _timed(lambda: local.rank(questions))
    _report(
        "selection",
        n=len(here),
        largest_gap=gap,
        local_s=statistics.median(here),
        vllm_s=statistics.median(there),
        local_batch_s=batch,
        vllm_together_s=together,
    )
    assert gap < 1e-4


def test_the_agents_turns_are_the_same_token_by_token(bundle: Bundle, local: Engine, remote: VllmEngine) -> None:
    here, there, texts, gap, cached = [], [], [], 0.0, []
    requests = _turns(bundle)
    for request in requests:
        expected, seconds = _timed(lambda request=request: write_whole(local, "agent", request))
        here.append(seconds)
        found, seconds = _timed(lambda request=request: _last(remote, request))
        there.append(seconds)
        assert found.text == expected.text
        assert found.completion_tokens == expected.completion_tokens
        assert [name for name, _ in found.choices] == [name for name, _ in expected.choices]
        texts.append(found.text)
        gaps = [abs(p - q) for (_, p), (_, q) in zip(found.choices, expected.choices, strict=True)]
        gap, cached = max(gap, *gaps, 0.0), [*cached, found.cached_tokens / found.prompt_tokens]
    with ThreadPoolExecutor(len(requests)) as threads:
        found_together, together = _timed(lambda: list(threads.map(lambda request: _last(remote, request), requests)))
    assert [turn.text for turn in found_together] == texts
    _report(
        "turns",
        n=len(here),
        largest_gap_of_log_p=gap,
        local_s=statistics.median(here),
        vllm_s=statistics.median(there),
        vllm_together_s=together,
        cached_share=round(statistics.mean(cached), 2),
    )
    assert gap < 1e-3
    assert max(cached) > 0.5, "what an earlier turn read is not read again"


def _turns(bundle: Bundle) -> list[TurnRequest]:
    """Turns of several kinds: calls, a second turn behind an observation, an open text, answers, free ones."""
    tools = [bundle.catalog[tool_id] for tool_id in TOOL_IDS]
    offered = tuple(TurnTool(tool.call_name, (TurnArgument("image"),), tool.description) for tool in tools)
    note = TurnTool("write-note", (TurnArgument("text"), TurnArgument("number", default=1.0, maximum=9)))

    def request(words: str, **fields: object) -> TurnRequest:
        prompt = render_dialogue_prompt(tools, "", words)
        files = ("image/ab12.png", "image/cd34.png")
        values = {"tools": offered, "files": files, "fallback_text": words, **fields}
        return TurnRequest(prompt, **values)  # type: ignore[arg-type]

    first = render_call(offered[0].name, "image/ab12.png")
    seen = (Turn("assistant", first), Turn("observation", " image/ef56.png\n"))
    return [
        request("Draw the edges of image/ab12.png, then measure it"),
        request("Draw the edges of image/ab12.png, then measure it", turns=seen),
        request("Remove the noise from image/cd34.png", may_answer=False),
        request("Hello! How are you?"),
        request("Write a note: buy milk, 3 bottles", tools=(note,), may_answer=False),
        request("What can you do with image/cd34.png?", may_call=False, max_answer_tokens=40),
        request("Tell me about Paris", is_constrained=False, max_answer_tokens=24),
    ]


def _last(engine: VllmEngine, request: TurnRequest) -> WrittenTurn:
    *_, written = engine.write_in_steps("agent", request)
    assert isinstance(written, WrittenTurn)
    return written


def _timed(work: Callable[[], _T]) -> tuple[_T, float]:
    start = time.perf_counter()
    return work(), time.perf_counter() - start
