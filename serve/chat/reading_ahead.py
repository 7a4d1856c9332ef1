"""What agents may be offered, read in the background when the service starts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from serve.chat.answer import ChatService

logger = logging.getLogger("ray.serve")


@asynccontextmanager
async def reading_ahead(chat: ChatService) -> AsyncIterator[None]:
    """While this context is open, models that find tools by their cards read those of all tools, between questions.

    Else the first agent that is asked on a machine waits for it. Not where there may be no replica: it would start one.
    """
    task = asyncio.create_task(_read(chat)) if chat.args.min_replicas else None
    try:
        yield
    finally:
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def _read(chat: ChatService) -> None:
    for name in chat.models.names:
        try:
            await chat.read_tools(name)
        except Exception as error:  # noqa: BLE001  (whatever it is, those who ask will be told)
            logger.warning("the tools of %s were not read ahead: %s", name, error)
