"""Limits, counted on a clock that needs no time."""

from __future__ import annotations

import asyncio
import bisect

import pytest
from chat_server import FastClock

from data_pipeline.teacher.limiter import FIRST_WINDOW, MAX_BACKOFF_S, MAX_PAUSE_S, Lease, Limiter


def most_per_minute(times_s: list[float]) -> int:
    return max(bisect.bisect_left(times_s, start + 60) - number for number, start in enumerate(times_s))


def take_all(limiter: Limiter, tokens: list[int], spent: int | None = None) -> list[float]:
    """When each of the leases was given out, all of them asked for at once."""

    async def take(n_tokens: int, times_s: list[float]) -> None:
        lease = await limiter.take(n_tokens)
        times_s.append(limiter.clock.now_s())
        limiter.give_back(lease, spent)

    async def take_each() -> list[float]:
        times_s: list[float] = []
        await asyncio.gather(*(take(n_tokens, times_s) for n_tokens in tokens))
        return times_s

    return asyncio.run(take_each())


@pytest.mark.parametrize("per_minute", [7.5, 60, 500])
def test_no_minute_has_more_requests_than_allowed(per_minute: float) -> None:
    times_s = take_all(Limiter(per_minute, None, 64, FastClock()), [1] * 600)
    assert most_per_minute(times_s) <= per_minute * 61 / 60 + 1
    assert times_s[-1] == pytest.approx(600 * 60 / per_minute, rel=0.02)  # nor fewer


def test_no_minute_has_more_tokens_than_allowed() -> None:
    times_s = take_all(Limiter(None, 6000, 64, FastClock()), [50] * 600)
    assert most_per_minute(times_s) * 50 <= 6000 * 61 / 60 + 50
    assert times_s[-1] == pytest.approx(300, rel=0.02)


def test_a_request_larger_than_the_bucket_passes_and_the_next_waits_the_longer() -> None:
    times_s = take_all(Limiter(None, 60, 64, FastClock()), [30, 30, 1])
    assert times_s == pytest.approx([0, 30, 60])


def test_tokens_that_were_not_used_are_given_back() -> None:
    times_s = take_all(Limiter(None, 6000, 1, FastClock()), [1000] * 100, spent=100)
    assert times_s[-1] == pytest.approx(99, rel=0.02)


def test_both_limits_hold() -> None:
    times_s = take_all(Limiter(60, 600, 64, FastClock()), [20] * 30)
    assert times_s[-1] == pytest.approx(29 * 2, abs=2)


def test_leases_come_in_the_order_in_which_they_were_asked_for() -> None:
    order: list[int] = []
    limiter = Limiter(60, None, 3, FastClock())

    async def take(number: int) -> None:
        lease = await limiter.take(1)
        order.append(number)
        await asyncio.sleep(0)
        limiter.give_back(lease)

    async def take_each() -> None:
        await asyncio.gather(*(take(number) for number in range(50)))

    asyncio.run(take_each())
    asyncio.run(take_each())  # in another event loop
    assert order == [*range(50), *range(50)]


def answer(limiter: Limiter, n_times: int) -> None:
    for _ in range(n_times):
        limiter.note_answer()


def test_the_window_grows_and_halves() -> None:
    limiter = Limiter(None, None, 64)
    assert limiter.window == FIRST_WINDOW
    answer(limiter, 10)
    assert limiter.window == FIRST_WINDOW + 10
    answer(limiter, 100)
    assert limiter.window == 64
    limiter.note_overload(Lease(0, 0))
    assert limiter.window == 32
    answer(limiter, 33)
    assert limiter.window == 33  # by one for a window of answers from now on
    answer(limiter, 10_000)
    assert limiter.window == 64


def test_requests_that_were_sent_together_halve_the_window_once() -> None:
    async def take(limiter: Limiter) -> None:
        answer(limiter, 100)
        leases = [await limiter.take(1) for _ in range(10)]
        for lease in leases:
            limiter.note_overload(lease)
        assert limiter.window == 32
        limiter.note_overload(await limiter.take(1))
        assert limiter.window == 16

    asyncio.run(take(Limiter(None, None, 64)))


def test_the_window_never_closes() -> None:
    limiter = Limiter(None, None, 64)
    for number in range(100):
        limiter.note_overload(Lease(number + 10**6, 0))
    assert limiter.window == 1


def test_no_more_leases_are_out_than_the_window_has() -> None:
    async def take() -> None:
        limiter = Limiter(None, None, 2)
        first, second = await limiter.take(1), await limiter.take(1)
        third, fourth = (asyncio.create_task(limiter.take(1)) for _ in range(2))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not third.done()
        third.cancel()
        limiter.give_back(first)
        await fourth  # the one that was given up is passed over
        limiter.give_back(second)
        await limiter.take(1)

    asyncio.run(take())


def test_a_pause_holds_for_all() -> None:
    clock = FastClock()
    limiter = Limiter(None, None, 64, clock)
    limiter.pause(30)
    limiter.pause(5)
    assert take_all(limiter, [1, 1]) == [30, 30]
    limiter.pause(10**9)
    assert take_all(limiter, [1]) == [30 + MAX_PAUSE_S]


def test_back_off_grows_and_has_jitter_that_a_seed_gives() -> None:
    def waits(seed: int) -> list[float]:
        clock = FastClock()
        limiter = Limiter(None, None, 1, clock, seed)

        async def back_off() -> None:
            for n_failures in range(1, 12):
                await limiter.back_off(n_failures)

        asyncio.run(back_off())
        return clock.waits_s

    assert waits(0) == waits(0) != waits(1)
    for number, wait_s in enumerate(waits(0)):
        longest_s = min(MAX_BACKOFF_S, 2**number)
        assert longest_s / 2 <= wait_s <= longest_s
