"""Asking another deployment: errors unwrapped, and asked again where a replica has died."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from ray.exceptions import RayActorError

from data_pipeline.errors import InputError

logger = logging.getLogger("ray.serve")

ATTEMPTS = 4
PAUSE_S = 0.2  # before the second attempt; it doubles


async def ask(method: Any, *args: Any, attempts: int = ATTEMPTS) -> Any:
    """Call a deployment's method and await its answer.

    A request whose replica died goes to another replica, or waits for the next. An input error raised in the replica
    arrives wrapped with its stack trace: it is unwrapped.

    Args:
        method: of a deployment handle, such as `handle.select`.
        args: of the call.
        attempts: at the most; 1 for what must not happen twice.
    """
    for attempt in range(1, attempts + 1):
        try:
            return await method.remote(*args)
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
    raise AssertionError("the last attempt returns or raises")
