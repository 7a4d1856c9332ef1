"""How fast a server is asked, over the whole job: requests and tokens per minute, and how many at the same time.

The window of requests in flight follows TCP's congestion control (RFC 5681): it grows by one with every answer until
the server is overloaded for the first time, halves then, and from there on grows by one for every window of answers.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import deque
from dataclasses import dataclass
from typing import Protocol

FIRST_WINDOW = 4
BURST_S = 1.0  # what a bucket holds: in no minute more than 61 seconds' worth is asked
FIRST_BACKOFF_S = 1.0
MAX_BACKOFF_S = 60.0
MAX_PAUSE_S = 3600.0  # longer is not waited for, whatever the server says


class Clock(Protocol):
    """What time it is, and how to wait; tests have a faster one."""

    def now_s(self) -> float: ...
    async def sleep(self, seconds: float) -> None: ...


class MonotonicClock:
    """The machine's."""

    def now_s(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


@dataclass(frozen=True)
class Lease:
    """The right to send one request.

    Attributes:
        number: leases are counted.
        tokens: that it was reckoned with.
    """

    number: int
    tokens: int


class TokenBucket:
    """Lets through `per_minute` units in a minute on average, and at most `BURST_S` seconds' worth of them at once.

    Something larger than the bucket passes when that is full, and what follows waits the longer.
    """

    def __init__(self, per_minute: float, now_s: float) -> None:
        self._per_second = per_minute / 60
        self._capacity = max(1.0, self._per_second * BURST_S)
        self._level = self._capacity
        self._filled_s = now_s

    def delay_s(self, amount: float, now_s: float) -> float:
        """How long to wait until so much may pass."""
        self._fill(now_s)
        missing = min(amount, self._capacity) - self._level
        return missing / self._per_second if missing > 1e-9 else 0.0

    def take(self, amount: float, now_s: float) -> None:
        """Let so much pass; a negative amount gives back."""
        self._fill(now_s)
        self._level = min(self._capacity, self._level - amount)

    def _fill(self, now_s: float) -> None:
        self._level = min(self._capacity, self._level + (now_s - self._filled_s) * self._per_second)
        self._filled_s = now_s


class Limiter:
    """Gives out leases in the order in which they are asked for. It is bound to no event loop.

    Args:
        requests_per_minute: None = no limit.
        tokens_per_minute: None = no limit.
        max_concurrency: leases that are out at the same time.
        seed: of the jitter.
    """

    def __init__(
        self,
        requests_per_minute: float | None,
        tokens_per_minute: float | None,
        max_concurrency: int,
        clock: Clock | None = None,
        seed: int = 0,
    ) -> None:
        self.clock = clock or MonotonicClock()
        now_s = self.clock.now_s()
        self._requests = TokenBucket(requests_per_minute, now_s) if requests_per_minute else None
        self._tokens = TokenBucket(tokens_per_minute, now_s) if tokens_per_minute else None
        self._max_window = max_concurrency
        self._window = float(min(FIRST_WINDOW, max_concurrency))
        self._was_halved = False
        self._first_after_halving = 0  # number of the first lease that was given out behind the last halving
        self._n_leases = 0
        self._n_out = 0
        self._paused_until_s = -math.inf
        self._queue: deque[asyncio.Event] = deque()  # the first one waits for its time, the others for their turn
        self._random = random.Random(seed)

    @property
    def window(self) -> int:
        """How many leases may be out at the same time."""
        return int(self._window)

    async def take(self, tokens: int) -> Lease:
        """Wait until a request may be sent. The lease has to be given back.

        Args:
            tokens: that it is going to take, roughly.
        """
        turn = asyncio.Event()
        self._queue.append(turn)
        try:
            while (delay_s := self._delay_s(turn, tokens)) > 0:
                if delay_s == math.inf:
                    turn.clear()
                    await turn.wait()
                else:
                    await self.clock.sleep(delay_s)
        finally:
            self._queue.remove(turn)
            self._wake_next()
        now_s = self.clock.now_s()
        if self._requests:
            self._requests.take(1, now_s)
        if self._tokens:
            self._tokens.take(tokens, now_s)
        self._n_out += 1
        self._n_leases += 1
        return Lease(self._n_leases - 1, tokens)

    def give_back(self, lease: Lease, tokens: int | None = None) -> None:
        """The request is over.

        Args:
            tokens: that it took; None where nobody knows.
        """
        self._n_out -= 1
        if self._tokens and tokens is not None:
            self._tokens.take(tokens - lease.tokens, self.clock.now_s())
        self._wake_next()

    def note_answer(self) -> None:
        """The server keeps up."""
        growth = 1 / self._window if self._was_halved else 1
        self._window = min(self._max_window, self._window + growth)
        self._wake_next()

    def note_overload(self, lease: Lease) -> None:
        """The server does not keep up. Requests that were sent together halve the window once, not each."""
        if lease.number >= self._first_after_halving:
            self._window = max(1.0, self._window / 2)
            self._was_halved = True
            self._first_after_halving = self._n_leases

    def pause(self, seconds: float) -> None:
        """Give out no lease for so long."""
        until_s = self.clock.now_s() + min(seconds, MAX_PAUSE_S)
        self._paused_until_s = max(self._paused_until_s, until_s)

    async def back_off(self, n_failures: int) -> None:
        """Wait before a request is sent again: twice as long with each failure, less up to a half by chance."""
        longest_s = min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2 ** min(n_failures - 1, 16))
        await self.clock.sleep(longest_s * self._random.uniform(0.5, 1))

    def _delay_s(self, turn: asyncio.Event, tokens: int) -> float:
        """How long to wait before looking again; infinity: until somebody wakes us."""
        if self._queue[0] is not turn or self._n_out >= self.window:
            return math.inf
        now_s = self.clock.now_s()
        delays_s = [self._paused_until_s - now_s]
        if self._requests:
            delays_s.append(self._requests.delay_s(1, now_s))
        if self._tokens:
            delays_s.append(self._tokens.delay_s(tokens, now_s))
        return max(0.0, *delays_s)

    def _wake_next(self) -> None:
        if self._queue:
            self._queue[0].set()
