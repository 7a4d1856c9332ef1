"""Questions on their way to the predictor: those that come within a moment go in one call.

A call between deployments costs the predictor's process 3 to 4 ms in which its model waits for the interpreter, whether
the call holds one question or several (docs/results.md).
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from contextvars import Context
from typing import Any

from data_pipeline.errors import InputError
from serve.engine.calls import ask
from serve.engine.messages import TOOLS_AT_ONCE, Ranking, SelectQuery

GATHER_S = 0.005  # that a question waits for others, and only while the predictor has others of this process already
MAX_QUESTIONS = 8  # in a call: it is answered when the last of them is

_Answers = dict[int, Ranking | InputError]  # by the places of their questions


class _Call:
    """Questions that go together, by their places; those whose askers have gone are taken out."""

    def __init__(self) -> None:
        self.queries: dict[int, SelectQuery] = {}
        self.is_full = asyncio.Event()
        self.task: asyncio.Task[_Answers] | None = None


class Questions:
    """One ingress' questions to the predictor; for one event loop."""

    def __init__(self, predictor: Any) -> None:
        """
        Args:
            predictor: the deployment's handle.
        """
        self._predictor = predictor
        self._gathering: _Call | None = None
        self._tasks: set[asyncio.Task[_Answers]] = set()  # of calls that gather, or are under way

    async def ask(self, query: SelectQuery) -> Ranking:
        """The predictor's answer to one question; one that needs tools to be read first goes alone.

        Raises:
            InputError: the question is at fault.
        """
        if len(query.tools or ()) > TOOLS_AT_ONCE:
            (answer,) = await ask(self._predictor.select, [query])
        else:
            answer = await self._ask_with_others(query)
        if isinstance(answer, InputError):
            raise answer
        return answer

    async def _ask_with_others(self, query: SelectQuery) -> Ranking | InputError:
        call = self._gathering or self._begin()
        place = len(call.queries)
        while place in call.queries:  # one before it has gone
            place += 1
        call.queries[place] = query
        if len(call.queries) == MAX_QUESTIONS:
            self._gathering = None
            call.is_full.set()
        assert call.task is not None
        try:
            answers = await asyncio.shield(call.task)
        except asyncio.CancelledError:
            del call.queries[place]
            if not call.queries:  # nobody waits for it any more
                call.task.cancel()
                if self._gathering is call:
                    self._gathering = None
            raise
        return answers[place]

    def _begin(self) -> _Call:
        call = self._gathering = _Call()
        sending = self._send(call, GATHER_S if self._tasks else 0.0)
        # of no request: Ray Serve ends what a request has begun when its client goes, and the call is others' as well
        call.task = asyncio.get_running_loop().create_task(sending, context=Context())
        self._tasks.add(call.task)
        call.task.add_done_callback(self._tasks.discard)
        return call

    async def _send(self, call: _Call, seconds: float) -> _Answers:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await call.is_full.wait()
        if self._gathering is call:
            self._gathering = None
        queries = dict(call.queries)
        answers = await ask(self._predictor.select, list(queries.values()))
        return dict(zip(queries, answers, strict=True))
