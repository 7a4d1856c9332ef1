"""Turns and questions take the model pass by pass; who leaves ends the work; in a pause no turn is under way."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import aclosing
from typing import Any

import pytest

from data_pipeline.records.dialogue import render_answer
from model.decode.turn_types import PromptTooLongError, RunningTurn, TurnRequest, WrittenTurn
from serve.engine.batching import Batcher
from serve.engine.turns import Turns


class Model:
    """Takes note of its passes, each of the turns that share it; a turn's prompt is its words, of which a pass writes
    one of each turn."""

    def __init__(self) -> None:
        self.passes: list[str] = []
        self.closed: list[str] = []
        self.under_way: dict[RunningTurn, list[str]] = {}
        self.is_free = asyncio.Lock()
        self.turns = Turns(self, self.is_free, max_running=2)
        self.questions: Batcher[str, str] = Batcher(self.rank, 4, 0.0, self.is_free)

    def begin(self, name: str, request: TurnRequest) -> RunningTurn:
        assert name == "m"
        if not request.prompt:
            raise PromptTooLongError("too long")
        turn = RunningTurn()
        self.under_way[turn] = request.prompt.split()
        return turn

    def step(self) -> None:
        self.passes.append(" ".join(words[len(turn.text.split())] for turn, words in self.under_way.items()))
        for turn, words in list(self.under_way.items()):
            turn.text = " ".join(words[: len(turn.text.split()) + 1])
            if turn.text == " ".join(words):
                turn.end = WrittenTurn(render_answer(turn.text), 1, len(words))
                self.leave(turn)

    def leave(self, turn: RunningTurn) -> None:
        self.closed.append(self.under_way.pop(turn)[0])

    def rank(self, questions: list[str]) -> list[str]:
        self.passes += questions
        return questions

    async def read(self, words: str) -> list[str | WrittenTurn]:
        return [event async for event in self.turns.write("m", TurnRequest(words))]


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 30))


def test_turns_share_passes_and_questions_come_between() -> None:
    async def scenario() -> None:
        model = Model()
        words = [" ".join(f"{name}{n}" for n in range(20)) for name in "abc"]
        tasks = [asyncio.create_task(model.read(text)) for text in words]
        while not any("b3" in entry for entry in model.passes):
            await asyncio.sleep(0)
        begun = len(model.passes)
        assert await model.questions.ask("?") == "?"
        assert model.passes.index("?") - begun <= 2, "it waited for the pass under way, not for a turn"
        written = [await task for task in tasks]
        for text, events in zip(words, written, strict=True):
            *texts, turn = events
            assert isinstance(turn, WrittenTurn)
            assert turn.text == render_answer(text)
            assert len(texts) > 2
            assert all(isinstance(part, str) and text.startswith(part) for part in texts)
        shared = [entry for entry in model.passes if entry != "?"]
        assert shared[:4] == ["a0", "a1 b0", "a2 b1", "a3 b2"], "one joins at a time"
        assert shared[20:22] == ["b19 c0", "c1"], "two at a time; who comes takes the place of who is done"
        assert len(shared) == 40

    run(scenario())


def test_who_leaves_ends_the_work_and_faults_reach_their_caller() -> None:
    async def scenario() -> None:
        model = Model()
        endless = " ".join(["a"] * 100_000)
        async with aclosing(model.turns.write("m", TurnRequest(endless))) as events:
            async for _ in events:
                break
        task = asyncio.create_task(model.read(endless))
        while not model.passes:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(PromptTooLongError, match="too long"):
            await model.read("")
        assert isinstance((await model.read("b"))[-1], WrittenTurn)
        assert model.closed in (["a", "a", "b"], ["a", "b"]), "not begun, it is not closed either"
        assert not model.under_way
        n_passes = len(model.passes)
        await asyncio.sleep(0.05)
        assert len(model.passes) == n_passes < 1000

    run(scenario())


def test_in_a_pause_no_turn_is_under_way() -> None:
    async def scenario() -> None:
        model = Model()
        first = asyncio.create_task(model.read("a b c"))
        while not model.passes:
            await asyncio.sleep(0)
        async with model.turns.paused():
            assert model.passes == ["a", "b", "c"], "what was under way ends first"
            second = asyncio.create_task(model.read("d"))
            await asyncio.sleep(0.05)
            assert "d" not in model.passes
        assert len(await first) >= 1
        assert isinstance((await second)[-1], WrittenTurn)

    run(scenario())
