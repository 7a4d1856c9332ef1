"""Responses that later requests go on from: in the memory of one ingress replica, for a bounded time and number."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from serve.chat.messages import Message
from serve.chat.response_schemas import ResponseObject
from serve.chat.shares import find_first_to_go


@dataclass(frozen=True)
class RememberedResponse:
    """A response, and the chat up to it with media as artifacts; without its instructions, as at OpenAI."""

    response: ResponseObject
    messages: tuple[Message, ...]


class ResponseMemory:
    """What the callers of one ingress replica may go on from; for one event loop."""

    def __init__(self, max_responses: int, ttl_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Where there are more than `max_responses`, the oldest of the caller who has most go; all go after `ttl_s`."""
        self._max_responses = max_responses
        self._ttl_s = ttl_s
        self._clock = clock
        self._kept: OrderedDict[str, tuple[str, float, RememberedResponse]] = OrderedDict()  # id -> caller, until, what

    def put(self, caller: str, remembered: RememberedResponse) -> None:
        """Keep a response for the caller whose it is."""
        self._kept[remembered.response.id] = (caller, self._clock() + self._ttl_s, remembered)
        self._forget_old()

    def find(self, caller: str, response_id: str) -> RememberedResponse | None:
        """The caller's response of that id; None where there is none, or it is another's."""
        self._forget_old()
        owner, _, remembered = self._kept.get(response_id, ("", 0.0, None))
        return remembered if owner == caller else None

    def forget(self, caller: str, response_id: str) -> bool:
        """Drop a response; whether the caller had it."""
        if self.find(caller, response_id) is None:
            return False
        del self._kept[response_id]
        return True

    def _forget_old(self) -> None:
        now = self._clock()
        while self._kept and next(iter(self._kept.values()))[1] <= now:
            self._kept.popitem(last=False)
        while len(self._kept) > self._max_responses:
            del self._kept[find_first_to_go({key: caller for key, (caller, _, _) in self._kept.items()})]
