"""Requests that come while the model works are answered together; errors and callers who leave disturb no other."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Sequence

import pytest

from serve.engine.batching import Batcher


class _Model:
    """Answers with the double; it works until it is told to go on."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go_on = threading.Event()
        self.go_on.set()
        self.error: Exception | None = None

    def __call__(self, items: list[int]) -> Sequence[int]:
        self.batches.append(items)
        assert self.go_on.wait(10)
        if self.error is not None:
            raise self.error
        return [2 * item for item in items]


async def _ask_one_by_one(batcher: Batcher[int, int], items: Sequence[int]) -> list[asyncio.Task[int]]:
    """Each comes well after the one before, as clients' requests do."""
    tasks = []
    for item in items:
        tasks.append(asyncio.create_task(batcher.ask(item)))
        await asyncio.sleep(0.02)
    return tasks


def test_what_waits_for_a_busy_model_becomes_one_batch() -> None:
    async def run() -> None:
        model.go_on.clear()
        tasks = await _ask_one_by_one(batcher, range(8))
        model.go_on.set()
        assert await asyncio.gather(*tasks) == [0, 2, 4, 6, 8, 10, 12, 14]

    model = _Model()
    batcher = Batcher(model, 5, 0.001)
    asyncio.run(run())
    assert model.batches == [[0], [1, 2, 3, 4, 5], [6, 7]]
    assert batcher.largest_batch == 5


def test_callers_that_were_just_answered_are_waited_for() -> None:
    async def ask_twice(item: int) -> None:
        await batcher.ask(item)
        await asyncio.sleep(0.01 * item)  # the way of an answer and of the next question
        await batcher.ask(item)

    async def run() -> None:
        await asyncio.gather(*(ask_twice(item) for item in range(1, 4)))

    model = _Model()
    batcher = Batcher(model, 8, 5.0)
    asyncio.run(run())
    assert model.batches == [[1, 2, 3], [1, 2, 3]]


def test_nobody_is_waited_for_longer_than_said() -> None:
    async def run() -> float:
        await asyncio.gather(*(batcher.ask(item) for item in range(4)))
        start = asyncio.get_running_loop().time()
        assert await batcher.ask(9) == 18, "three of four have gone"
        assert asyncio.get_running_loop().time() - start < 2
        assert await batcher.ask(8) == 16
        return start

    model = _Model()
    batcher = Batcher(model, 8, 0.05)
    asyncio.run(run())
    assert model.batches == [[0, 1, 2, 3], [9], [8]]


def test_an_error_reaches_its_batch_alone_and_a_caller_may_leave() -> None:
    async def run() -> None:
        model.error = ValueError("broken")
        with pytest.raises(ValueError, match="broken"):
            await batcher.ask(1)
        model.error = None
        model.go_on.clear()
        first, second, third = await _ask_one_by_one(batcher, (1, 2, 3))
        second.cancel()
        await asyncio.sleep(0)
        model.go_on.set()
        assert (await first, await third) == (2, 6)

    model = _Model()
    batcher = Batcher(model, 8, 0)
    asyncio.run(run())
    assert model.batches == [[1], [1], [3]]


def test_batchers_of_one_model_take_turns() -> None:
    """Never two batches at once on one model."""
    running = threading.Semaphore(1)

    def answer(items: list[int]) -> list[int]:
        assert running.acquire(blocking=False)
        threading.Event().wait(0.01)
        running.release()
        return items

    async def run() -> None:
        lock = asyncio.Lock()
        batchers = [Batcher(answer, 2, 0, lock) for _ in range(2)]
        assert await asyncio.gather(*(batchers[i % 2].ask(i) for i in range(8))) == list(range(8))

    asyncio.run(run())


def test_the_next_batch_begins_before_the_last_ones_callers_go_on() -> None:
    def keep_the_loop_busy(_: object) -> None:
        threading.Event().wait(0.3)
        begun.append(len(model.batches))

    async def run() -> None:
        model.go_on.clear()
        tasks = await _ask_one_by_one(batcher, (1, 2, 3))
        tasks[0].add_done_callback(keep_the_loop_busy)
        model.go_on.set()
        await asyncio.gather(*tasks)

    begun: list[int] = []
    model = _Model()
    batcher = Batcher(model, 2, 0)
    asyncio.run(run())
    assert model.batches == [[1], [2, 3]]
    assert begun == [2], "of two batches"


def test_after_a_long_batch_its_callers_are_waited_for_longer() -> None:
    async def ask_twice(item: int) -> None:
        await batcher.ask(item)
        await asyncio.sleep(0.02 * item)
        await batcher.ask(item)

    async def run() -> None:
        await asyncio.gather(*(ask_twice(item) for item in range(1, 4)))

    def answer(items: list[int]) -> list[int]:
        batches.append(items)
        threading.Event().wait(1.0)
        return items

    batches: list[list[int]] = []
    batcher = Batcher(answer, 8, 0)
    asyncio.run(run())
    assert batches == [[1, 2, 3], [1, 2, 3]]


def _start_with_callers(batcher: Batcher[int, int], n: int) -> Awaitable[list[int]]:
    """So many callers at once: as many are expected afterwards."""
    return asyncio.gather(*(batcher.ask(item) for item in range(n)))


def test_what_is_there_is_read_while_the_others_are_waited_for() -> None:
    async def run() -> None:
        await _start_with_callers(batcher, 6)
        first = asyncio.gather(*(batcher.ask(item) for item in (10, 11, 12)))
        await asyncio.sleep(0.05)
        assert reads == [[10, 11, 12]], "half of the six callers of late"
        later = asyncio.create_task(batcher.ask(13))
        await asyncio.sleep(0.05)
        assert reads == [[10, 11, 12], [13]]
        last = asyncio.gather(*(batcher.ask(item) for item in (14, 15)))
        assert [*await first, await later, *await last] == [20, 22, 24, 26, 28, 30]

    reads: list[list[int]] = []
    answered: list[list[int]] = []
    read: list[int] = []

    def note(items: list[int]) -> None:
        reads.append(items)
        read.extend(items)

    def answer(items: list[int]) -> list[int]:
        answered.append(items)
        everyone = [*read, *items]
        read.clear()
        return [2 * item for item in everyone]

    batcher = Batcher(answer, 8, 5.0, read=note)
    asyncio.run(run())
    assert answered[-1] == [14, 15], "with the last ones there is nothing to wait for"
    assert batcher.largest_batch == 6


def test_those_who_do_not_come_are_not_waited_for_long() -> None:
    async def run() -> None:
        await _start_with_callers(batcher, 4)
        assert await asyncio.gather(*(batcher.ask(item) for item in (5, 6))) == [5, 6]

    reads: list[list[int]] = []
    answered: list[list[int]] = []

    def answer(items: list[int]) -> list[int]:
        answered.append(items)
        return items or [5, 6]

    batcher = Batcher(answer, 4, 0.05, read=reads.append)
    asyncio.run(run())
    assert answered[-1] == []
    assert reads[-1] == [5, 6]


def test_an_error_while_reading_goes_to_the_whole_batch() -> None:
    async def run() -> None:
        await _start_with_callers(batcher, 4)
        faulty[:] = [5]
        for error in await asyncio.gather(*(batcher.ask(item) for item in (5, 6)), return_exceptions=True):
            assert isinstance(error, ValueError)
        assert await asyncio.gather(*(batcher.ask(item) for item in range(4))) == list(range(4))

    faulty: list[int] = []

    def read(items: list[int]) -> None:
        if items[:1] == faulty:
            raise ValueError("no")

    batcher = Batcher(lambda items: items, 4, 0.05, read=read)
    asyncio.run(run())
