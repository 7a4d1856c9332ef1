"""Turns of dialogues under way: each takes a pass of the model in turn with the others and with batches of questions.

A turn of hundreds of tokens so keeps a question waiting for one pass only, and another turn for one pass of each.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator
from contextlib import asynccontextmanager

from model.decode.turn_types import TurnRequest, WrittenTurn

_Passes = Generator[str, None, WrittenTurn]


class _Turn:
    """One turn under way.

    Attributes:
        text: what of its answer is certain.
        end: the turn, or what went wrong.
        is_left: whether its caller has gone.
        has_news: text or end have changed.
    """

    def __init__(self, passes: _Passes) -> None:
        self._passes = passes
        self.text = ""
        self.end: WrittenTurn | Exception | None = None
        self.is_left = False
        self.has_news = asyncio.Event()

    def step(self) -> None:
        """One pass; it blocks, and runs in a thread."""
        try:
            self.text = next(self._passes)
        except StopIteration as end:
            self.end = end.value
        except Exception as error:  # noqa: BLE001  (whatever it is, it goes to who waits)
            self.end = error

    def close(self) -> None:
        """Give back its memory."""
        self._passes.close()


class Turns:
    """Writes turns, pass by pass; for one event loop."""

    def __init__(self, write: Callable[[str, TurnRequest], _Passes], is_free: asyncio.Lock, max_running: int) -> None:
        """
        Args:
            write: begins a turn by the model of a name: a generator that makes one pass between two of its values.
            is_free: held during each pass; shared by those that use one model.
            max_running: turns under way at most, as each holds memory; further ones wait.
        """
        self._write = write
        self._is_free = is_free
        self._max_running = max_running
        self._waiting: deque[_Turn] = deque()
        self._running: deque[_Turn] = deque()
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
        turn = _Turn(self._write(model, request))
        self._waiting.append(turn)
        self._start()
        shown = ""
        try:
            while turn.end is None:
                await turn.has_news.wait()
                turn.has_news.clear()
                if turn.end is None and turn.text != shown:
                    shown = turn.text
                    yield shown
            if isinstance(turn.end, Exception):
                raise turn.end
            yield turn.end
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
        """Until no turn can go on."""
        self._is_empty.clear()
        try:
            while True:
                while self._waiting and len(self._running) < self._max_running and not self._is_paused:
                    self._running.append(self._waiting.popleft())
                if not self._running:
                    return
                turn = self._running.popleft()
                if turn.is_left:
                    turn.close()
                    continue
                async with self._is_free:
                    await asyncio.to_thread(turn.step)
                if turn.end is None:
                    self._running.append(turn)
                turn.has_news.set()
        finally:
            self._is_empty.set()
