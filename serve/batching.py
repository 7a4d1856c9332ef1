"""Batches from what waits: while the model works on one batch, requests gather, and the next batch takes them all.

Ray Serve's own `@serve.batch` closes a batch a few milliseconds after its first request came, also while the model is
busy: requests that come one by one then form a queue of batches of one, and sixteen clients got a fifth of the queries
per second (docs/results.md).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Generic, TypeVar

WAIT_SHARE = (
    0.2  # of a batch's time: sixteen callers come back within it, and two batches of eight take half as long again
)

_Item = TypeVar("_Item")
_Answer = TypeVar("_Answer")


class Batcher(Generic[_Item, _Answer]):
    """Answers requests in batches, in a thread, one batch at a time; for one event loop.

    Attributes:
        largest_batch: since the start.
    """

    def __init__(
        self,
        answer: Callable[[list[_Item]], Sequence[_Answer]],
        max_batch_size: int,
        wait_s: float,
        is_free: asyncio.Lock | None = None,
    ) -> None:
        """
        Args:
            answer: items -> as many answers, in order; it blocks, and runs in a thread.
            max_batch_size: items in one batch at most.
            wait_s: how long a free model waits at most for as many requests as there were of late: callers that were
                just answered may ask again. After a long batch it may be `WAIT_SHARE` of that. A single caller never
                waits.
            is_free: held while a batch runs; shared by those that use one model.
        """
        self._answer = answer
        self._max_batch_size = max_batch_size
        self._wait_s = wait_s
        self._is_free = asyncio.Lock() if is_free is None else is_free
        self._waiting: deque[tuple[_Item, asyncio.Future[_Answer]]] = deque()
        self._has_come = asyncio.Event()
        self._n_callers = 1  # of late
        self._seconds = 0.0  # of the last batch
        self._working: asyncio.Task[None] | None = None
        self.largest_batch = 0

    async def ask(self, item: _Item) -> _Answer:
        """The answer to one item; an error that the whole batch ran into is raised for each of its items."""
        future: asyncio.Future[_Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        self._has_come.set()
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        """Until nobody waits. The model begins its next batch first, then those of the last one get their answers."""
        loop = asyncio.get_running_loop()
        while self._waiting:
            if 2 * len(self._waiting) < self._wanted():
                await self._wait_for_company()
            async with self._is_free:
                batch = self._take()
                if not batch:  # their callers have gone
                    continue
                self.largest_batch = max(self.largest_batch, len(batch))
                start = loop.time()
                try:
                    answers = await loop.run_in_executor(None, self._answer, [item for item, _ in batch])
                except Exception as error:  # noqa: BLE001  (whatever it is, it goes to those who wait)
                    answers = [error] * len(batch)
                self._seconds = loop.time() - start
            self._n_callers = len(batch) + len(self._waiting)
            loop.call_soon(deliver, batch, answers)  # after the next batch has begun, if that can begin at once

    async def _wait_for_company(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(max(self._wait_s, WAIT_SHARE * self._seconds)):
                while len(self._waiting) < self._wanted():
                    self._has_come.clear()
                    await self._has_come.wait()

    def _wanted(self) -> int:
        return min(self._n_callers, self._max_batch_size)

    def _take(self) -> list[tuple[_Item, asyncio.Future[_Answer]]]:
        """The next batch, without those whose caller has gone."""
        batch: list[tuple[_Item, asyncio.Future[_Answer]]] = []
        while self._waiting and len(batch) < self._max_batch_size:
            item, future = self._waiting.popleft()
            if not future.done():
                batch.append((item, future))
        return batch


def deliver(batch: Sequence[tuple[_Item, asyncio.Future[_Answer]]], answers: Sequence[_Answer | Exception]) -> None:
    """Give each item's answer, or error, to its caller if that is still there."""
    for (_, future), answer in zip(batch, answers, strict=True):
        if future.done():
            continue
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)
