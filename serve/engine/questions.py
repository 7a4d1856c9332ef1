"""Questions on their way to the predictor: those that come within a moment go in one call.

A call between deployments costs the predictor's process 3 to 4 ms in which its model waits for the interpreter, whether
the call holds one question or several (docs/results.md).
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from serve.engine.batching import deliver
from serve.engine.calls import ask
from serve.engine.messages import Ranking, SelectQuery

GATHER_S = 0.005  # that a question waits for others, and only while the predictor has others of this process already
MAX_QUESTIONS = 8  # in a call: it is answered when the last of them is
MAX_TOOLS = 8  # that a question brings along to share a call: more may have to be read first, which takes its time


class Questions:
    """One ingress' questions to the predictor; for one event loop."""

    def __init__(self, predictor: Any) -> None:
        """
        Args:
            predictor: the deployment's handle.
        """
        self._predictor = predictor
        self._gathered: list[tuple[SelectQuery, asyncio.Future[Ranking]]] = []
        self._calls: set[asyncio.Task[None]] = set()  # that gather, or are under way

    async def ask(self, query: SelectQuery) -> Ranking:
        """The predictor's answer to one question.

        Raises:
            InputError: the question is at fault.
        """
        future: asyncio.Future[Ranking] = asyncio.get_running_loop().create_future()
        if len(query.tools or ()) > MAX_TOOLS:
            self._start(self._call([(query, future)]))
            return await future
        self._gathered.append((query, future))
        if len(self._gathered) == 1:
            self._start(self._gather(GATHER_S if self._calls else 0.0))
        elif len(self._gathered) == MAX_QUESTIONS:
            self._start(self._call(self._take()))
        return await future

    def _start(self, call: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(call)
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    async def _gather(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await self._call(self._take())

    def _take(self) -> list[tuple[SelectQuery, asyncio.Future[Ranking]]]:
        gathered, self._gathered = self._gathered, []
        return [(query, future) for query, future in gathered if not future.done()]  # else its caller has gone

    async def _call(self, questions: list[tuple[SelectQuery, asyncio.Future[Ranking]]]) -> None:
        if not questions:
            return
        calling = asyncio.current_task()
        assert calling is not None

        def leave(_: asyncio.Future[Ranking]) -> None:
            if all(future.cancelled() for _, future in questions):  # nobody waits for it any more
                calling.cancel()

        for _, future in questions:
            future.add_done_callback(leave)
        answers: list[Ranking | Exception]
        try:
            answers = await ask(self._predictor.select, [query for query, _ in questions])
        except Exception as error:  # noqa: BLE001  (whatever it is, it goes to those who wait)
            answers = [error] * len(questions)
        deliver(questions, answers)
