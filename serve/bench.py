"""What HTTP, batching and the agent's machinery cost: `python -m serve.bench`, a part of `make bench`.

One run, one tiny backbone, 933 tools, words alone: the engine in this process, batch after batch; the service with
sixteen clients that ask one question after the other; the service at a steady 80 % of that; and the papers' way, one
sampled `generate` for one question after the other.
"""

from __future__ import annotations

import http.client
import json
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray import serve as ray_serve

from data_pipeline.catalog import Tool, ToolCatalog
from data_pipeline.encoding import encode_question
from model.bundle import save_bundle
from model.decode import Prompt, top_k_tools
from model.mllm import ToolLLM
from model.practised import TASKS, build_practised_mllm, render_question, sample_with_generate
from model.trie import CatalogTrie
from serve.app import build_app

CLIENTS = 16
K = 5
SECONDS = 20.0  # of each load
SHARE = 0.8  # of the load that the clients reach
N_QUESTIONS = 256
N_SAMPLED = 24


def run(seconds: float = SECONDS, n_steps: int = 200) -> dict[str, Any]:
    """Measure, print a table, and return the numbers.

    Args:
        seconds: of each load.
        n_steps: of the model's practice.
    """
    torch.set_num_threads(1)  # as a replica with one CPU has
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mllm, tools_of = build_practised_mllm(folder / "backbone", n_steps)
        catalog = ToolCatalog([Tool(tool_id) for tools in tools_of.values() for tool_id in tools])
        _save(folder / "bundle", mllm, catalog)
        rng = np.random.default_rng(1)
        questions = [render_question(str(rng.choice(TASKS)), rng) for _ in range(N_QUESTIONS)]
        engine = {size: _run_engine(mllm, catalog, questions, size, seconds / 4) for size in (8, 16)}
        with _serving(folder) as port:
            _run_clients(port, questions, seconds / 4)  # warm-up
            closed = _run_clients(port, questions, seconds)
            steady = _run_steady(port, questions, SHARE * closed["queries_per_s"], seconds)
        engine_after = {size: _run_engine(mllm, catalog, questions, size, seconds / 4) for size in (8, 16)}
        sampled = _run_sampling(mllm, questions)
    best = max((engine[size] + engine_after[size]) / 2 for size in engine)
    results = {
        "engine_queries_per_s": {str(size): (engine[size] + engine_after[size]) / 2 for size in engine},
        "http": closed,
        "steady": steady,
        "sampling_queries_per_s": sampled,
        "http_over_engine": closed["queries_per_s"] / best,
        "p99_over_p50": steady["p99_ms"] / steady["p50_ms"],
        "http_over_sampling": closed["queries_per_s"] / sampled,
    }
    _show(results)
    return results


def _show(results: dict[str, Any]) -> None:
    closed, steady = results["http"], results["steady"]
    print(f"{'way':<44}{'queries/s':>11}{'p50 ms':>9}{'p99 ms':>9}")
    for size, rate in results["engine_queries_per_s"].items():
        print(f"{'engine in one process, batches of ' + size:<44}{rate:>11.1f}")
    for name, load in ((f"HTTP, {CLIENTS} clients", closed), (f"HTTP, steady {SHARE:.0%} of that", steady)):
        print(f"{name:<44}{load['queries_per_s']:>11.1f}{load['p50_ms']:>9.0f}{load['p99_ms']:>9.0f}")
    print(f"{'one sampled generate() after the other':<44}{results['sampling_queries_per_s']:>11.1f}")
    print(
        f"HTTP reaches {results['http_over_engine']:.0%} of the engine's queries per second and "
        f"{results['http_over_sampling']:.1f} times those of sampling; at {SHARE:.0%} load p99 is "
        f"{results['p99_over_p50']:.1f} times p50; {closed['failed'] + steady['failed']} requests failed."
    )


def _save(folder: Path, mllm: ToolLLM, catalog: ToolCatalog) -> None:
    save_bundle(
        folder,
        mllm=mllm,
        catalog=catalog,
        encoder_id="",
        encoder_name="",
        model_config=mllm.config,
        data_hash="0" * 64,
        metrics={},
        resolved_config={},
        git_revision="",
    )


def _run_engine(mllm: ToolLLM, catalog: ToolCatalog, questions: list[str], batch_size: int, seconds: float) -> float:
    """Queries per second of the same search in this process, tokenising included."""
    trie = CatalogTrie(catalog.selection_tool_ids, mllm.tokenizer)
    batches = [questions[i : i + batch_size] for i in range(0, len(questions), batch_size)]
    n_done, start = -batch_size, time.perf_counter()  # the first batch warms up
    while True:
        for batch in batches:
            top_k_tools(mllm, [_prompt(mllm, question) for question in batch], K, trie, also=("unknown",))
            n_done += batch_size
            now = time.perf_counter()
            if n_done == 0:
                start = now
            elif now - start > seconds:
                return n_done / (now - start)


def _run_sampling(mllm: ToolLLM, questions: list[str]) -> float:
    """Queries per second of one sample for one question after the other, without HTTP."""
    prompts = [_prompt(mllm, question) for question in questions[: N_SAMPLED + 1]]
    sample_with_generate(mllm, prompts.pop(), 1)  # warm-up
    start = time.perf_counter()
    for prompt in prompts:
        sample_with_generate(mllm, prompt, 1)
    return len(prompts) / (time.perf_counter() - start)


def _prompt(mllm: ToolLLM, question: str) -> Prompt:
    return Prompt(encode_question(mllm.tokenizer, question, False, ()).prompt_ids)


@contextmanager
def _serving(folder: Path) -> Iterator[int]:
    """The service as it is deployed; yields its port."""
    if not ray.is_initialized():
        ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    ray_serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        args = {"bundle": str(folder / "bundle"), "artifacts": str(folder / "artifacts"), "top_k": K}
        ray_serve.run(build_app(args), name="toolmm-bench")
        yield port
    finally:
        ray_serve.shutdown()


class _Client:
    """One connection that is kept."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)

    def ask(self, question: str) -> bool:
        """Whether the answer was one."""
        body = json.dumps({"instruction": question})
        self._connection.request("POST", "/v1/tools/select", body, {"Content-Type": "application/json"})
        response = self._connection.getresponse()
        response.read()
        return response.status == 200


def _run_clients(port: int, questions: list[str], seconds: float) -> dict[str, float]:
    """Every client asks as soon as it has its answer."""
    end = time.perf_counter() + seconds
    taken: list[tuple[float, bool]] = []

    def ask_on(number: int) -> None:
        client, i = _Client(port), number * 7
        while (sent := time.perf_counter()) < end:
            is_good = client.ask(questions[(i := i + 1) % len(questions)])
            taken.append((time.perf_counter() - sent, is_good))

    start = time.perf_counter()
    _run_threads(ask_on, CLIENTS)
    return _summarise(taken, time.perf_counter() - start)


def _run_steady(port: int, questions: list[str], rate: float, seconds: float) -> dict[str, float]:
    """Questions come at random times (Poisson), whatever was answered; a latency begins when its question comes."""
    rng = np.random.default_rng(2)
    times = np.cumsum(rng.exponential(1 / rate, size=int(rate * seconds)))
    begin = time.perf_counter() + 0.5
    arrivals = enumerate(times.tolist())
    lock = threading.Lock()
    taken: list[tuple[float, bool]] = []

    def ask_on(_: int) -> None:
        client = _Client(port)
        while True:
            with lock:
                i, due = next(arrivals, (-1, 0.0))
            if i < 0:
                return
            time.sleep(max(0.0, begin + due - time.perf_counter()))
            is_good = client.ask(questions[i % len(questions)])
            taken.append((time.perf_counter() - begin - due, is_good))

    _run_threads(ask_on, 4 * CLIENTS)
    return _summarise(taken, time.perf_counter() - begin)


def _run_threads(work: Callable[[int], None], n: int) -> None:
    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _summarise(taken: list[tuple[float, bool]], seconds: float) -> dict[str, float]:
    latencies_ms = 1e3 * np.array([latency for latency, _ in taken])
    p50, p99 = np.percentile(latencies_ms, [50, 99])
    n_failed = sum(not is_good for _, is_good in taken)
    return {"queries_per_s": len(taken) / seconds, "p50_ms": float(p50), "p99_ms": float(p99), "failed": n_failed}


if __name__ == "__main__":
    print(json.dumps(run()))
