"""What HTTP, batching and the agent's machinery cost: `python -m serve.bench`, a part of `make bench`.

Two tiny backbones, one after the other, 933 tools, words alone: the engine in this process, batch after batch; the
service with sixteen clients that ask one question after the other; the service at a steady 80 % of that; and the
papers' way, one sampled `generate` for one question after the other. They take turns, round after round: a machine's
speed changes by more than what is compared. What a request costs beside the model does not grow with the model.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# See serve/README.md; read when Ray Serve is imported, and passed on to all that Ray starts.
os.environ.setdefault("RAY_SERVE_ENABLE_HA_PROXY", "1")
os.environ.setdefault("RAY_SERVE_THROUGHPUT_OPTIMIZED", "1")

import numpy as np
import ray
import torch
from ray import serve as ray_serve

from data_pipeline.batches.encoding import encode_question
from data_pipeline.records.catalog import Tool, ToolCatalog
from model.decode.tools import Prompt, top_k_tools
from model.decode.trie import ChoiceTrie
from model.llm.shared_backbone import SharedBackbone
from model.llm.tool_llm import ToolLLM
from model.tiny.bundle import save_tiny_bundle
from model.tiny.practised import build_practised_mllm, draw_questions, sample_with_generate
from serve.app import build_app

API_KEY = secrets.token_hex()  # behind HAProxy the service wants one
CLIENTS = 16
K = 5
ROUNDS = 5
DEPTHS = (8, 16)  # of the backbones, in layers
INGRESS_REPLICAS = 2  # one Python process that speaks HTTP for each core, as the other one waits for the model
SECONDS = 8.0  # of the clients' load in each round; half of it for the engine
SHARE = 0.8  # of the load that the clients reach
N_QUESTIONS = 256
N_SAMPLED = 24
BATCH_SIZES = (8, 16)


def run(n_layers: int, rounds: int = ROUNDS, seconds: float = SECONDS, n_steps: int = 200) -> dict[str, Any]:
    """Measure, print a table, and return the numbers: means over the rounds; of p99 over p50 the median.

    Args:
        n_layers: of the backbone.
        rounds: in which everything is measured once.
        seconds: of the clients' load in each of them.
        n_steps: of the model's practice.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sampler, tools_of = build_practised_mllm(folder / "backbone", n_steps, n_layers)
        catalog = ToolCatalog([Tool(tool_id) for tools in tools_of.values() for tool_id in tools])
        bundle = save_tiny_bundle(folder / "bundle", sampler, catalog)
        torch.set_num_threads(1)  # as a replica with one CPU has
        engine = SharedBackbone({"engine": bundle}).mllm  # the replica's model
        questions = draw_questions(N_QUESTIONS, seed=1)
        rates: dict[str, list[float]] = {"sampled": [], **{f"engine {size}": [] for size in BATCH_SIZES}}
        closed, steady, tails = _Load(), _Load(), []
        with _serving(folder) as port:
            _run_clients(port, questions, seconds / 2)  # warm-up
            for number in range(rounds):
                for size in BATCH_SIZES:
                    rates[f"engine {size}"].append(_run_engine(engine, catalog, questions, size, seconds / 4))
                reached = _run_clients(port, questions, seconds)
                calm = _run_steady(port, questions, SHARE * reached.queries_per_s, seconds)
                closed, steady = closed + reached, steady + calm
                tails.append(calm.percentile_ms(99) / calm.percentile_ms(50))
                rates["sampled"].append(_run_sampling(sampler, questions))
                print(
                    f"{n_layers} layers, round {number + 1} of {rounds}: HTTP {closed.queries_per_s:.1f} queries/s",
                    flush=True,
                )
    mean = {name: float(np.mean(values)) for name, values in rates.items()}
    results = {
        "n_layers": n_layers,
        "engine_queries_per_s": {str(size): mean[f"engine {size}"] for size in BATCH_SIZES},
        "http": closed.summarise(),
        "steady": steady.summarise(),
        "sampling_queries_per_s": mean["sampled"],
        "http_over_engine": closed.queries_per_s / max(mean[f"engine {size}"] for size in BATCH_SIZES),
        "p99_over_p50": float(np.median(tails)),
        "http_over_sampling": closed.queries_per_s / mean["sampled"],
    }
    _show(results)
    return results


class _Load:
    """What a load's requests took, over all rounds."""

    def __init__(self, seconds: float = 0.0, taken: tuple[tuple[float, bool], ...] = ()) -> None:
        self._seconds = seconds
        self._taken = taken

    def __add__(self, other: _Load) -> _Load:
        return _Load(self._seconds + other._seconds, self._taken + other._taken)

    @property
    def queries_per_s(self) -> float:
        return len(self._taken) / self._seconds

    def percentile_ms(self, share: float) -> float:
        """Of the latencies."""
        return float(np.percentile([1e3 * latency for latency, _ in self._taken], share))

    def summarise(self) -> dict[str, float]:
        """For the table and the results."""
        return {
            "queries_per_s": self.queries_per_s,
            "p50_ms": self.percentile_ms(50),
            "p99_ms": self.percentile_ms(99),
            "failed": sum(not is_good for _, is_good in self._taken),
        }


def _show(results: dict[str, Any]) -> None:
    closed, steady = results["http"], results["steady"]
    print(f"{str(results['n_layers']) + ' layers':<44}{'queries/s':>11}{'p50 ms':>9}{'p99 ms':>9}")
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


def _run_engine(mllm: ToolLLM, catalog: ToolCatalog, questions: list[str], batch_size: int, seconds: float) -> float:
    """Queries per second of the same search in this process, tokenising included."""
    trie = ChoiceTrie(catalog.selection_tool_ids, mllm.tokenizer)
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
    os.environ["TOOLMM_API_KEYS"] = API_KEY
    if not ray.is_initialized():
        ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    ray_serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        args = {
            "bundle": str(folder / "bundle"),
            "artifacts": str(folder / "artifacts"),
            "top_k": K,
            "ingress_replicas": INGRESS_REPLICAS,
        }
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
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {API_KEY}"}
        self._connection.request("POST", "/v1/tools/select", body, headers)
        response = self._connection.getresponse()
        response.read()
        return response.status == 200


def _run_clients(port: int, questions: list[str], seconds: float) -> _Load:
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
    return _Load(time.perf_counter() - start, tuple(taken))


def _run_steady(port: int, questions: list[str], rate: float, seconds: float) -> _Load:
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
    return _Load(time.perf_counter() - begin, tuple(taken))


def _run_threads(work: Callable[[int], None], n: int) -> None:
    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    print(json.dumps([run(n_layers) for n_layers in DEPTHS]))
