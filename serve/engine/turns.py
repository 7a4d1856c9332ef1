"""Turns of dialogues under way: they share passes of the model, and batches of questions come between any two of these.

A turn of hundreds of tokens so keeps a question waiting for one pass only, and another turn not at all.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

from model.decode.turn_types import RunningTurn, TurnRequest, WrittenTurn

_LEFT = ConnectionAbortedError("its caller has gone")


class TurnEngine(Protocol):
    """What makes the passes; all of it blocks, and runs in one thread at a time."""

    def begin(self, name: str, request: TurnRequest) -> RunningTurn:
        """Put a turn by the model of a name among those under way.

        Raises:
            PromptTooLongError: the dialogue leaves no room for it.
        """
        ...

    def step(self) -> None:
        """One pass for turns under way; those that end with it are under way no more."""
        ...

    def leave(self, turn: RunningTurn) -> None:
        """End a turn that is under way, or was."""
        ...


class _Turn:
    """One turn that was asked for.

    Attributes:
        state: what of it is written; before it has begun, nothing.
        has_begun: whether it was put among those under way.
        is_left: whether its caller has gone.
        has_news: the state has changed.
    """

    def __init__(self, model: str, request: TurnRequest) -> None:
        self._asked = model, request
        self.state = RunningTurn()
        self.has_begun = False
        self.is_left = False
        self.has_news = asyncio.Event()

    def begin(self, engine: TurnEngine) -> None:
        self.has_begun = True
        try:
            self.state = engine.begin(*self._asked)
        except Exception as error:  # noqa: BLE001  (whatever it is, it goes to who waits)
            self.state.end = error

    def leave(self, engine: TurnEngine) -> None:
        if self.has_begun:
            engine.leave(self.state)
        self.state.end = _LEFT


class Turns:
    """Writes turns; for one event loop."""

    def __init__(self, engine: TurnEngine, is_free: asyncio.Lock, max_running: int) -> None:
        """
        Args:
            engine: makes the passes.
            is_free: held during each pass; shared by those that use one model.
            max_running: turns under way at most, as each holds memory; further ones wait.
        """
        self._engine = engine
        self._is_free = is_free
        self._max_running = max_running
        self._waiting: deque[_Turn] = deque()
        self._running: list[_Turn] = []
        self._is_paused = False
        self._is_empty = asyncio.Event()
        self._is_empty.set()
        self._working: asyncio.Task[None] | None = None

    async def write(self, model: str, request: TurnRequest) -> AsyncGenerator[str | WrittenTurn, None]:
        """Write one turn; leaving the iteration ends the work.

        Yields:
            what of its answer is certain, whenever that has grown, and at last the turn.

        Raises:
            PromptTooLongError: the dialogue leaves no room for it.
        """
        turn = _Turn(model, request)
        self._waiting.append(turn)
        self._start()
        shown = ""
        try:
            while turn.state.end is None:
                await turn.has_news.wait()
                turn.has_news.clear()
                if turn.state.end is None and turn.state.text != shown:
                    shown = turn.state.text
                    yield shown
            yield turn.state.result()
        finally:
            turn.is_left = True

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """Within, no turn is under way: those that are end first, those that come wait."""
        self._is_paused = True
        try:
            await self._is_empty.wait()
            yield
        finally:
            self._is_paused = False
            self._start()

    def _start(self) -> None:
        if self._waiting and (self._working is None or self._working.done()):
            self._working = asyncio.create_task(self._work())

    async def _work(self) -> None:
        """Until no turn can go on. One turn joins before each pass at most, so that no pass waits for many prompts."""
        self._is_empty.clear()
        try:
            while True:
                self._admit()
                if not self._running:
                    return
                async with self._is_free:
                    await asyncio.to_thread(self._make_pass)
                for turn in self._running:
                    turn.has_news.set()
                self._running = [turn for turn in self._running if turn.state.end is None]
        finally:
            self._is_empty.set()

    def _admit(self) -> None:
        while self._waiting and self._waiting[0].is_left:
            self._waiting.popleft()
        if self._waiting and len(self._running) < self._max_running and not self._is_paused:
            self._running.append(self._waiting.popleft())

    def _make_pass(self) -> None:
        """It blocks, and runs in a thread."""
        for turn in self._running:
            if turn.is_left:
                turn.leave(self._engine)
            elif not turn.has_begun:
                turn.begin(self._engine)
        if any(turn.state.end is None for turn in self._running):
            self._engine.step()
