"""Many clients at once, against the engine in this process: how many queries per second, and how long each takes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any

import numpy as np

from data_pipeline.batches.encoding import encode_question
from data_pipeline.markdown import render_table
from data_pipeline.records.catalog import UNKNOWN_TOOL_ID, ToolCatalog
from model.decode.tools import Prompt, top_k_tools
from model.decode.trie import ChoiceTrie
from model.llm.tool_llm import ToolLLM
from serve.bench.goals import Goal
from serve.bench.service import Client, K

CLIENTS = 16
BATCH_SIZES = (8, 16)
SHARE = 0.8  # of the load that the clients reach


class Load:
    """What a load's requests took, (latency in seconds, whether it was answered) each, over all rounds."""

    def __init__(self, seconds: float = 0.0, taken: Sequence[tuple[float, bool]] = ()) -> None:
        self._seconds = seconds
        self._taken = tuple(taken)

    def __add__(self, other: Load) -> Load:
        return Load(self._seconds + other._seconds, self._taken + other._taken)

    @property
    def queries_per_s(self) -> float:
        """Of those that were answered."""
        return sum(is_good for _, is_good in self._taken) / self._seconds

    @property
    def n_failed(self) -> int:
        return sum(not is_good for _, is_good in self._taken)

    def percentile_ms(self, share: float) -> float:
        """Of the latencies."""
        return float(np.percentile([1e3 * latency for latency, _ in self._taken], share))

    def to_json(self) -> dict[str, float]:
        return {
            "queries_per_s": self.queries_per_s,
            "p50_ms": self.percentile_ms(50),
            "p99_ms": self.percentile_ms(99),
            "failed": self.n_failed,
        }


class LoadMeasurement:
    """Engine, clients that ask one question after the other, and a steady load, in turns."""

    def __init__(
        self, mllm: ToolLLM, catalog: ToolCatalog, port: int, questions: Sequence[str], seconds: float
    ) -> None:
        """
        Args:
            mllm: the replica's model, in this process.
            catalog: to choose from.
            port: of the service.
            questions: that are asked, over and over.
            seconds: of the clients' load in each round; each size of the engine's batches has a third of it.
        """
        self._mllm, self._port, self._questions, self._seconds = mllm, port, questions, seconds
        self._trie = ChoiceTrie(catalog.selection_tool_ids, mllm.tokenizer)
        self._also = (UNKNOWN_TOOL_ID,) if UNKNOWN_TOOL_ID in catalog else ()
        self._rates: dict[int, list[float]] = {size: [] for size in BATCH_SIZES}
        self._closed, self._steady = Load(), Load()
        self._tails: list[float] = []
        run_clients(port, questions, seconds / 2)  # warm-up

    def run_round(self) -> None:
        """Measure everything once."""
        for size in BATCH_SIZES:
            self._rates[size].append(self._run_engine(size))
        reached = run_clients(self._port, self._questions, self._seconds)
        steady = run_steady(self._port, self._questions, SHARE * reached.queries_per_s, self._seconds)
        self._closed, self._steady = self._closed + reached, self._steady + steady
        self._tails.append(steady.percentile_ms(99) / steady.percentile_ms(50))

    def goals(self) -> list[Goal]:
        rates = {size: float(np.mean(rates)) for size, rates in self._rates.items()}
        best = max(rates, key=lambda size: rates[size])
        n_failed = self._closed.n_failed + self._steady.n_failed
        return [
            Goal(
                f"HTTP, {CLIENTS} clients, over the engine: queries/s",
                self._closed.queries_per_s / rates[best],
                0.9,
                is_least=True,
                note=f"{self._closed.queries_per_s:.1f} of {rates[best]:.1f}, batches of {best}; {n_failed} failed",
            ),
            Goal(
                f"HTTP, steady {SHARE:.0%} of that: p99 over p50, median of the rounds",
                float(np.median(self._tails)),
                3.0,
                note=", ".join(f"{tail:.1f}" for tail in self._tails),
            ),
        ]

    def to_json(self) -> dict[str, Any]:
        return {
            "engine_queries_per_s": {str(size): float(np.mean(rates)) for size, rates in self._rates.items()},
            "http": self._closed.to_json(),
            "steady": self._steady.to_json(),
        }

    def render(self) -> str:
        """Rates and latencies, for people."""
        rows: list[list[str]] = [
            [f"engine in one process, batches of {size}", f"{np.mean(rates):.1f}", "", ""]
            for size, rates in self._rates.items()
        ]
        for name, load in (
            (f"HTTP, {CLIENTS} clients", self._closed),
            (f"HTTP, steady {SHARE:.0%} of that", self._steady),
        ):
            times = (load.percentile_ms(50), load.percentile_ms(99))
            rows.append([name, f"{load.queries_per_s:.1f}", *(f"{time_ms:.0f}" for time_ms in times)])
        return render_table(["selections", "queries/s", "p50 ms", "p99 ms"], rows)

    def _run_engine(self, batch_size: int) -> float:
        """Queries per second of the same search in this process, tokenising included."""
        batches = [self._questions[i : i + batch_size] for i in range(0, len(self._questions), batch_size)]
        self._answer(batches[0])  # warm-up
        n_done, start = 0, time.perf_counter()
        for batch in cycle(batches):
            self._answer(batch)
            n_done += len(batch)
            if time.perf_counter() - start > self._seconds / 3:
                break
        return n_done / (time.perf_counter() - start)

    def _answer(self, questions: Sequence[str]) -> None:
        tokenizer = self._mllm.tokenizer
        prompts = [Prompt(encode_question(tokenizer, question, False, ()).prompt_ids) for question in questions]
        top_k_tools(self._mllm, prompts, K, self._trie, also=self._also)


def run_clients(port: int, questions: Sequence[str], seconds: float) -> Load:
    """Every client asks as soon as it has its answer."""
    end = time.perf_counter() + seconds
    taken: list[tuple[float, bool]] = []

    def ask_on(number: int) -> None:
        client, i = Client(port), number * 7
        while (sent := time.perf_counter()) < end:
            is_good = client.select(questions[(i := i + 1) % len(questions)])
            taken.append((time.perf_counter() - sent, is_good))

    start = time.perf_counter()
    _run_threads(ask_on, CLIENTS)
    return Load(time.perf_counter() - start, taken)


def run_steady(port: int, questions: Sequence[str], rate: float, seconds: float) -> Load:
    """Questions come at random times (Poisson), whatever was answered; a latency begins when its question comes."""
    rng = np.random.default_rng(2)
    times = np.cumsum(rng.exponential(1 / rate, size=max(1, int(rate * seconds))))
    begin = time.perf_counter() + 0.5
    arrivals = enumerate(times.tolist())
    lock = threading.Lock()
    taken: list[tuple[float, bool]] = []

    def ask_on(_: int) -> None:
        client = Client(port)
        while True:
            with lock:
                i, due = next(arrivals, (-1, 0.0))
            if i < 0:
                return
            time.sleep(max(0.0, begin + due - time.perf_counter()))
            is_good = client.select(questions[i % len(questions)])
            taken.append((time.perf_counter() - begin - due, is_good))

    _run_threads(ask_on, 4 * CLIENTS)
    return Load(time.perf_counter() - begin, taken)


def _run_threads(work: Callable[[int], None], n: int) -> None:
    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
