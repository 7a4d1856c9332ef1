"""Asking another deployment."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from data_pipeline.errors import InputError


async def ask(response: Awaitable[Any]) -> Any:
    """Await a deployment's answer; an input error raised there arrives wrapped with its stack trace: unwrap it."""
    try:
        return await response
    except Exception as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, InputError):
            raise cause from None
        raise
