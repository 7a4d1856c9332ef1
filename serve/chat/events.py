"""Answers that come bit by bit: their events, and what of their words was sent already."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import aclosing

from serve.agent.events import AgentStep, AnswerText
from serve.chat.schemas import ChatCompletion

AnswerEvents = AsyncGenerator[AnswerText | AgentStep | ChatCompletion, None]  # the completion comes last


async def await_completion(events: AnswerEvents) -> ChatCompletion:
    """The last of the events."""
    async with aclosing(events):
        async for event in events:
            if isinstance(event, ChatCompletion):
                return event
    raise AssertionError("an answer ended without an end")


async def go_on(first: AnswerText | AgentStep, events: AnswerEvents, deadline: float) -> AnswerEvents:
    """The first event and those behind it, up to a time of the loop (TimeoutError)."""
    async with aclosing(events):
        event: AnswerText | AgentStep | ChatCompletion = first
        while not isinstance(event, ChatCompletion):
            yield event
            async with asyncio.timeout_at(deadline):
                event = await anext(events)
        yield event


class SentWords:
    """What of an answer's words was sent already, while it is being written."""

    def __init__(self, stops: Sequence[str] = ()) -> None:
        """`stops`: texts before the first of which the answer ends."""
        self._stops = stops
        self.text = ""

    def grow(self, text: str) -> str:
        """What can be sent now that the answer begins so, up to what may become a text to stop at."""
        end = find_stop(text, self._stops)
        if end is None:
            held = [n for stop in self._stops for n in range(1, len(stop)) if text.endswith(stop[:n])]
            end = len(text) - max(held, default=0)
        text = text[:end]
        return "" if self.text.startswith(text) else self.finish(text)  # a model that was asked again begins anew

    def finish(self, text: str) -> str:
        """What is yet to be sent of the whole answer."""
        if not text.startswith(self.text):
            raise RuntimeError("an answer was written anew in other words while it was sent")
        new, self.text = text[len(self.text) :], text
        return new


def find_stop(text: str, stops: Sequence[str]) -> int | None:
    """Where the first of the texts to stop at begins; None where there is none."""
    return min((place for place in map(text.find, stops) if place >= 0), default=None)


async def as_async(events: Iterable[str]) -> AsyncIterator[str]:
    """What is there already, as if it came."""
    for event in events:
        yield event
