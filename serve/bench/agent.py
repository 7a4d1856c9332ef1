"""The agent's turns: how soon the first word comes, and how much of a dialogue is read again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from data_pipeline.records.dialogue import (
    render_call,
    render_dialogue_prompt,
    render_exchange,
    render_file_note,
    render_observation,
)
from data_pipeline.records.schema import ASSISTANT, OBSERVATION, Turn
from model.decode.kept_prefixes import KeptPrefixes
from model.decode.tree_cache import DecodeStats, Prompt, TreeCache, decoding
from model.decode.turn_types import TurnRequest, WrittenTurn
from model.decode.turn_writer import TurnBatch, TurnWriter
from model.llm.bundle import Bundle
from model.llm.tool_llm import ToolLLM
from serve.agent.tools import build_dialogue_tool, build_turn_tool
from serve.bench.goals import Goal
from serve.bench.service import Client
from serve.tools.all_tools import load_tools

N_TOOLS = 8  # that a dialogue offers, as many as a service's `agent_max_tools`
N_ANSWERS = 2  # over HTTP in a round
PICTURE = "image/bako3bam.png"
RESULT = "Sharpness 0.71, noise 0.05, exposure 0.48, each between 0 and 1."
REQUEST = "How sharp is this picture?"
THANKS = "Thank you. And what can you do for me?"
_NOTHING = np.empty(0, dtype=np.int32)


class Dialogues:
    """Requests of one dialogue: a picture, and tools of the catalogue that take one, each of which may be called."""

    def __init__(self, bundle: Bundle) -> None:
        specs = [spec for tool_id, spec in sorted(load_tools().items()) if tool_id in bundle.catalog]
        specs = [spec for spec in specs if [argument.kind for argument in spec.arguments] == ["image"]][:N_TOOLS]
        self._tools = [build_dialogue_tool(spec, bundle.catalog[spec.tool_id]) for spec in specs]
        self._offered = tuple(
            build_turn_tool(spec, tool.description) for spec, tool in zip(specs, self._tools, strict=True)
        )

    def begin(self, words: str, history: tuple[str, ...] = ()) -> TurnRequest:
        """The first turn after a user's words; earlier exchanges as `render_exchange` writes them."""
        note = render_file_note("image", PICTURE, "none given")
        prompt = render_dialogue_prompt(self._tools, "\n".join([note, *history]), words)
        return TurnRequest(prompt, tools=self._offered, files=(PICTURE,), fallback_text=words)

    def go_on(self, request: TurnRequest, call: str | None = None) -> TurnRequest:
        """The turn after a tool's result; `call` is the turn that called it, or the first tool's call."""
        call = call or render_call(self._offered[0].name, PICTURE)
        turns = (Turn(ASSISTANT, call), Turn(OBSERVATION, render_observation(RESULT)))
        return replace(request, turns=turns)


class FirstWordMeasurement:
    """The first word of an answer against one pass over its prompt, in this process and over HTTP.

    In this process it is an answer to a tool's result and one to small talk; nothing of the prompt was read before, and
    the model may call any tool in place of answering. Over HTTP it is an answer to small talk, the choice of the tools
    that are offered included.
    """

    def __init__(self, mllm: ToolLLM, dialogues: Dialogues, port: int, words: Iterator[str]) -> None:
        """
        Args:
            mllm: the replica's model, in this process.
            dialogues: that are answered here.
            port: of the service.
            words: the user's, others each time.
        """
        self._mllm, self._dialogues, self._port, self._words = mllm, dialogues, port, words
        self._writer = TurnWriter(mllm)
        self._engine: list[float] = []
        self._http: list[float] = []
        self._prompt_tokens = self._cached_tokens = 0
        Client(port).stream_agent(next(words))  # warm-up: the cards of all tools are read once

    def run_round(self) -> None:
        """Some answers of each kind; turns that call a tool do not count."""
        client = Client(self._port)
        result, talk = self._dialogues.go_on(self._dialogues.begin(REQUEST)), self._dialogues.begin(next(self._words))
        for request in (result, talk):
            turn = self._writer.encode(request)
            forward_s = self._run_forward(turn.prompt_ids)
            start = time.perf_counter()
            batch = TurnBatch(self._writer)
            running = batch.begin(turn)
            while running.end is None and not running.text:  # up to the first text that is certain
                batch.step()
            if running.text:
                self._engine.append((time.perf_counter() - start) / forward_s)
        for _ in range(N_ANSWERS):
            answer = client.stream_agent(next(self._words))
            if answer.n_steps == 0 and answer.first_s is not None:
                ids = np.resize(turn.prompt_ids, answer.prompt_tokens)
                self._http.append(answer.first_s / self._run_forward(ids))
                self._prompt_tokens += answer.prompt_tokens
                self._cached_tokens += answer.cached_tokens

    def goals(self) -> list[Goal]:
        cached = self._cached_tokens / max(1, self._prompt_tokens)
        return [
            Goal(
                "engine, an answer's first word over one pass over its prompt, median",
                _median(self._engine),
                1.5,
                note=f"{len(self._engine)} answers, nothing read before",
            ),
            Goal(
                "HTTP, likewise, tools shortlisted first",
                _median(self._http),
                1.5,
                note=f"{len(self._http)} answers, {cached:.0%} of the prompts read before",
            ),
        ]

    def to_json(self) -> dict[str, Any]:
        return {"engine": self._engine, "http": self._http}

    def _run_forward(self, ids: np.ndarray) -> float:
        """Seconds of one pass over a prompt, whole."""
        start = time.perf_counter()
        with decoding(self._mllm):
            TreeCache(self._mllm, [Prompt(ids)], _NOTHING, DecodeStats())
        return time.perf_counter() - start


class SecondTurn:
    """Tokens that are read for a dialogue's second turn, against those that stand behind the first one's prompt."""

    def __init__(self, mllm: ToolLLM, dialogues: Dialogues) -> None:
        """The model writes a first turn, which calls a tool, the next one, and one to the user's next words."""
        writer = TurnWriter(mllm)

        def write(request: TurnRequest) -> tuple[WrittenTurn, int]:
            """The turn, and the tokens that were read for it."""
            stats = DecodeStats()
            batch = TurnBatch(writer, kept=kept, stats=stats)
            running = batch.begin(writer.encode(request))
            while running.end is None:
                batch.step()
            return running.result(), stats.prompt_tokens

        kept = KeptPrefixes(1 << 30)
        first = dialogues.begin(REQUEST)
        call, _ = write(replace(first, may_answer=False))
        second, self._read = write(dialogues.go_on(first, call.text))
        self._new = second.prompt_tokens - call.prompt_tokens
        third, self._read_third = write(dialogues.begin(THANKS, (render_exchange(REQUEST, RESULT),)))
        self._new_third = third.prompt_tokens - call.prompt_tokens

    def goals(self) -> list[Goal]:
        return [
            Goal(
                "engine, tokens read for a dialogue's second turn over its new ones",
                self._read / self._new,
                1.1,
                note=f"{self._read} of {self._new}, call and result; to the user's next words {self._read_third}, the "
                f"prompt having grown by {self._new_third}",
            )
        ]

    def to_json(self) -> dict[str, Any]:
        return {"read": self._read, "new": self._new, "read_next_words": self._read_third}


def _median(values: list[float]) -> float:
    return float(np.median(values)) if values else float("nan")
