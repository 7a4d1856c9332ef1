"""A selection beside a running answer of the agent, against a selection alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from typing import Any

import numpy as np

from serve.bench.goals import Goal
from serve.bench.service import Client

PAUSE_S = 0.3  # between two selections at most: one comes at any moment of an answer, not always as a pass begins
N_SELECTIONS = 10  # of each kind in a round


class SelectionMeasurement:
    """One client selects, now alone, now while another one has the agent answer without a pause."""

    def __init__(self, port: int, questions: Sequence[str], words: Iterator[str]) -> None:
        """
        Args:
            port: of the service.
            questions: that tools are selected for, over and over.
            words: for the agent, others each time, so that it has a prompt to read.
        """
        self._port, self._words = port, words
        self._questions = cycle(questions)
        self._rng = np.random.default_rng(3)
        self._alone_s: list[float] = []
        self._beside_s: list[float] = []
        self._n_answers = 0

    def run_round(self) -> None:
        """Both kinds once."""
        self._alone_s += self._select()
        with self._agent_answering():
            self._beside_s += self._select()

    def goals(self) -> list[Goal]:
        alone, beside = float(np.median(self._alone_s)), float(np.median(self._beside_s))
        return [
            Goal(
                "HTTP, a selection beside an agent's answer over one alone, medians",
                beside / alone,
                2.0,
                note=f"{1e3 * beside:.0f} and {1e3 * alone:.0f} ms, {len(self._beside_s)} each; "
                f"{self._n_answers} answers",
            )
        ]

    def to_json(self) -> dict[str, Any]:
        return {"alone_s": self._alone_s, "beside_s": self._beside_s, "answers": self._n_answers}

    def _select(self) -> list[float]:
        """Seconds of each selection."""
        client, taken = Client(self._port), []
        for pause in self._rng.uniform(0, PAUSE_S, N_SELECTIONS):
            time.sleep(pause)
            start = time.perf_counter()
            if not client.select(next(self._questions)):
                raise RuntimeError("a selection was not answered")
            taken.append(time.perf_counter() - start)
        return taken

    @contextmanager
    def _agent_answering(self) -> Iterator[None]:
        """Within, an answer of the agent is under way."""
        is_over = threading.Event()

        def answer_on() -> None:
            client = Client(self._port)
            while not is_over.is_set():
                client.stream_agent(next(self._words))
                self._n_answers += 1

        thread = threading.Thread(target=answer_on, daemon=True)
        thread.start()
        try:
            yield
            if not thread.is_alive():
                raise RuntimeError("the agent had ended before the selections did")
        finally:
            is_over.set()
            thread.join()
