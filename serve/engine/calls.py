"""Asking another deployment: errors unwrapped, and asked again where a replica has died."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from ray.exceptions import RayActorError

from data_pipeline.errors import InputError

logger = logging.getLogger("ray.serve")

ATTEMPTS = 4
PAUSE_S = 0.2  # before the second attempt; it doubles


async def ask(method: Any, *args: Any, attempts: int = ATTEMPTS) -> Any:
    """Call a deployment's method and await its answer.

    A request whose replica died goes to another replica, or waits for the next. An input error raised in the replica
    arrives wrapped with its stack trace: it is unwrapped. Who stops waiting cancels the call.

    Args:
        method: of a deployment handle, such as `handle.select`.
        args: of the call.
        attempts: at the most; 1 for what must not happen twice.
    """
    for attempt in range(1, attempts + 1):
        async with _retrying(attempt, attempts):
            response = method.remote(*args)
            try:
                return await response
            except asyncio.CancelledError:
                response.cancel()
                raise
    raise AssertionError("the last attempt returns or raises")


async def ask_stream(method: Any, *args: Any) -> AsyncGenerator[Any, None]:
    """Call a deployment's streaming method and give what it yields; as `ask`, after a replica's death from the
    beginning."""
    for attempt in range(1, ATTEMPTS + 1):
        async with _retrying(attempt, ATTEMPTS):
            response = method.options(stream=True).remote(*args)
            is_ended = False
            try:
                async for answer in response:
                    yield answer
                is_ended = True
            finally:
                if not is_ended:
                    response.cancel()
            return


@asynccontextmanager
async def _retrying(attempt: int, attempts: int) -> AsyncIterator[None]:
    """Pass over a replica's death, unless it is the last attempt; unwrap an input error."""
    try:
        yield
    except RayActorError:
        if attempt == attempts:
            raise
        logger.warning("a replica died under a request; it is asked again (attempt %d)", attempt + 1)
        await asyncio.sleep(PAUSE_S * 2 ** (attempt - 1))
    except Exception as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, InputError):
            raise cause from None
        raise
