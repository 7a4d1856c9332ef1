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
        answer: Callable[[list[_Item]], Sequence[_Answer | Exception]],
        max_batch_size: int,
        wait_s: float,
        is_free: asyncio.Lock | None = None,
        read: Callable[[list[_Item]], None] | None = None,
    ) -> None:
        """
        Args:
            answer: a batch's items, those left out that were given to `read` -> an answer or an error for every item of
                the batch, in order. It blocks, and runs in a thread; so does `read`.
            max_batch_size: items in one batch at most.
            wait_s: how long a free model waits at most for as many requests as there were of late: callers that were
                just answered may ask again. After a long batch it may be `WAIT_SHARE` of that. A single caller never
                waits.
            is_free: held while a batch runs; shared by those that use one model.
            read: what can be done already with some of a batch's items, while others are waited for; without it, a
                batch does not wait once half of its callers are there.
        """
        self._answer = answer
        self._read = read
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
            n_half = (self._wanted() + 1) // 2
            if len(self._waiting) < n_half:
                await self._wait_for(self._wanted() if self._read is None else n_half, self._end_of_patience())
            async with self._is_free:
                batch = self._take(self._max_batch_size)
                if not batch:  # their callers have gone
                    continue
                answers: Sequence[_Answer | Exception]
                start = loop.time()
                try:
                    rest = batch if self._read is None else await self._read_some(batch, self._read)
                    start = loop.time()
                    answers = await asyncio.to_thread(self._answer, [item for item, _ in rest])
                except Exception as error:  # noqa: BLE001  (whatever it is, it goes to those who wait)
                    answers = [error] * len(batch)
                self._seconds = loop.time() - start
            self.largest_batch = max(self.largest_batch, len(batch))
            self._n_callers = len(batch) + len(self._waiting)
            loop.call_soon(deliver, batch, answers)  # after the next batch has begun, if that can begin at once

    async def _read_some(
        self, batch: list[tuple[_Item, asyncio.Future[_Answer]]], read: Callable[[list[_Item]], None]
    ) -> list[tuple[_Item, asyncio.Future[_Answer]]]:
        """Fill up the batch with those who come in time; what came last is returned, the others were read meanwhile."""
        end, part = self._end_of_patience(), list(batch)
        while part and len(batch) < self._wanted():
            await asyncio.to_thread(read, [item for item, _ in part])
            await self._wait_for(1, end)
            part = self._take(self._max_batch_size - len(batch))
            batch += part
        return part

    async def _wait_for(self, n: int, end: float) -> None:
        """Until so many wait, or until that time of the loop."""
        with suppress(TimeoutError):
            async with asyncio.timeout_at(end):
                while len(self._waiting) < n:
                    self._has_come.clear()
                    await self._has_come.wait()

    def _end_of_patience(self) -> float:
        return asyncio.get_running_loop().time() + max(self._wait_s, WAIT_SHARE * self._seconds)

    def _wanted(self) -> int:
        return min(self._n_callers, self._max_batch_size)

    def _take(self, n: int) -> list[tuple[_Item, asyncio.Future[_Answer]]]:
        """At most so many of those that wait, without those whose caller has gone."""
        taken: list[tuple[_Item, asyncio.Future[_Answer]]] = []
        while self._waiting and len(taken) < n:
            item, future = self._waiting.popleft()
            if not future.done():
                taken.append((item, future))
        return taken


def deliver(batch: Sequence[tuple[_Item, asyncio.Future[_Answer]]], answers: Sequence[_Answer | Exception]) -> None:
    """Give each item's answer, or error, to its caller if that is still there."""
    for (_, future), answer in zip(batch, answers, strict=True):
        if future.done():
            continue
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)
