"""Calls of tools that bear the header Idempotency-Key: made once, however often their caller asks.

The header is that of the IETF's draft "The Idempotency-Key HTTP Header Field". A client that lost its connection does
not know whether its call was made; by the key it gets the first one's answer, or waits for it.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import Context
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Any, TypeVar

from fastapi import Header
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from serve.http.schemas import RequestError
from serve.tools.spec import ToolError

MAX_KEPT = 1000  # keys of one caller; the oldest that are over go where there are more
MAX_RUNNING = 16  # of one caller: they go on where their clients have gone, which frees the places of requests
MAX_KEY_CHARS = 255
_KEY = re.compile(rf"[!-~](?:[ -~]{{0,{MAX_KEY_CHARS - 2}}}[!-~])?", re.ASCII)
_NOTHING_DONE = {"bad_arguments", "bad_media", "weights_not_available"}  # of a tool's errors: it may do its work later

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        description="made up by the caller, for one call: a request with the same key gets that call's answer",
        json_schema_extra={"pattern": f"^{_KEY.pattern}$"},
    ),
]

_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class _KeptCall:
    digest: bytes  # of what was asked
    task: asyncio.Task[Any]
    until_s: float


class IdempotentCalls:
    """The keys of the callers of one ingress replica, in its memory; for one event loop."""

    def __init__(self, ttl_s: float, *, is_alone: bool = True, clock: Callable[[], float] = time.monotonic) -> None:
        """Keys are kept for `ttl_s` from their first request; none are taken where this replica is not the only one,
        as the same key may reach another."""
        self._ttl_s = ttl_s
        self._is_alone = is_alone
        self._clock = clock
        self._kept: dict[str, OrderedDict[str, _KeptCall]] = {}  # caller -> key -> call

    async def once(self, caller: str, key: str | None, asked: Any, call: Callable[[], Awaitable[_Answer]]) -> _Answer:
        """The answer of the first call with this key, or of this one where there was none.

        What a call came to is kept, its failure too, unless nothing was done. It goes on when those who wait have gone.

        Args:
            caller: whose key it is.
            key: the header; None = the call is made, and not kept.
            asked: what the call is about, as JSON values; the same in each request with this key.
            call: makes it.

        Raises:
            RequestError: the key is none (400), stands for another call (422), or too many are under way (429).
        """
        if key is None:
            return await call()
        key = self._check(key)
        digest = sha256(json.dumps(asked, sort_keys=True).encode()).digest()
        kept = self._kept.setdefault(caller, OrderedDict())
        self._forget_old(kept)
        known = kept.get(key)
        if known is None:
            if sum(not other.task.done() for other in kept.values()) >= MAX_RUNNING:
                raise RequestError(
                    f"{MAX_RUNNING} of your calls with an Idempotency-Key are under way; wait for one of them.",
                    429,
                    "too_many_at_once",
                )
            # of no request: Ray Serve ends what a request has begun when its client goes
            task = asyncio.get_running_loop().create_task(_run(call), context=Context())
            known = kept[key] = _KeptCall(digest, task, self._clock() + self._ttl_s)
            self._forget_old(kept)
            task.add_done_callback(lambda task: self._forget_if_nothing_done(caller, key, task))
        elif known.digest != digest:
            raise RequestError(
                "This Idempotency-Key was sent with another request before; make up a new key for each call.",
                422,
                "idempotency_key_reused",
            )
        return await asyncio.shield(known.task)

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """What is under way at the block's end is cancelled."""
        try:
            yield
        finally:
            tasks = [call.task for kept in self._kept.values() for call in kept.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _check(self, key: str) -> str:
        """The key; the draft's form is a string in quotes, most clients send it bare."""
        if not self._is_alone:
            raise RequestError(
                "This service has several ingress replicas, which know nothing of each other's keys; leave out the "
                "header Idempotency-Key, or set ingress_replicas to 1.",
                code="idempotency_not_kept",
            )
        bare = key[1:-1] if len(key) > 1 and key[0] == key[-1] == '"' else key
        if not _KEY.fullmatch(bare):
            raise RequestError(
                f"The header Idempotency-Key is no key; send 1 to {MAX_KEY_CHARS} visible ASCII characters, such as a "
                "UUID.",
                code="bad_idempotency_key",
            )
        return bare

    def _forget_old(self, kept: OrderedDict[str, _KeptCall]) -> None:
        now = self._clock()
        for key, call in list(kept.items()):
            if call.task.done() and (call.until_s <= now or len(kept) > MAX_KEPT):
                del kept[key]

    def _forget_if_nothing_done(self, caller: str, key: str, task: asyncio.Task[Any]) -> None:
        error = None if task.cancelled() else task.exception()
        is_refusal = isinstance(error, RequestError | BackPressureError | DeploymentUnavailableError)
        if is_refusal or (isinstance(error, ToolError) and error.code in _NOTHING_DONE):
            self._kept[caller].pop(key, None)  # it may have been the oldest of too many


async def _run(call: Callable[[], Awaitable[_Answer]]) -> _Answer:
    return await call()
