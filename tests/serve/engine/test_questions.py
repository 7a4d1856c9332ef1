"""Questions that share a call to the predictor."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from contextvars import ContextVar
from typing import Any

import pytest
from ray.exceptions import RayActorError

from data_pipeline.errors import InputError
from data_pipeline.records.catalog import Tool
from serve.engine.messages import TOOLS_AT_ONCE, Ranking, SelectQuery
from serve.engine.questions import MAX_QUESTIONS, Questions


class _Response:
    """Of a deployment handle."""

    def __init__(self, answer: Coroutine[Any, Any, list[Ranking | InputError]], predictor: _Predictor) -> None:
        self._answer, self._predictor = answer, predictor

    def __await__(self) -> Generator[Any, None, list[Ranking | InputError]]:
        return self._answer.__await__()

    def cancel(self) -> None:
        self._predictor.n_cancelled += 1


class _Predictor:
    """Answers when `go_on` says so; a question's words are the answer's revision."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.errors: list[Exception] = []
        self.select = self
        self.n_cancelled = 0
        self.seen: Callable[[], str] = str
        self.requests: list[str] = []

    def remote(self, queries: Sequence[SelectQuery]) -> _Response:
        return _Response(self._answer(queries), self)

    async def _answer(self, queries: Sequence[SelectQuery]) -> list[Ranking | InputError]:
        words = [query.instruction for query in queries]
        self.calls.append(words)
        self.requests.append(self.seen())
        await self.go_on.wait()
        if self.errors:
            raise self.errors.pop()
        return [InputError("Too long.") if word == "long" else Ranking([], word) for word in words]


def run(scene: Callable[[_Predictor, Callable[[str], Awaitable[Ranking]]], Any]) -> _Predictor:
    async def play() -> _Predictor:
        predictor = _Predictor()
        questions = Questions(predictor)
        await scene(predictor, lambda word: questions.ask(SelectQuery("m", word, None, 1)))
        return predictor

    return asyncio.run(play())


def test_one_question_goes_at_once() -> None:
    async def scene(_: _Predictor, ask: Callable[[str], Awaitable[Ranking]]) -> None:
        assert (await ask("a")).revision == "a"
        assert (await ask("b")).revision == "b"

    assert run(scene).calls == [["a"], ["b"]]


def test_what_comes_while_one_is_under_way_shares_a_call() -> None:
    async def scene(predictor: _Predictor, ask: Callable[[str], Awaitable[Ranking]]) -> None:
        predictor.go_on.clear()
        first = asyncio.ensure_future(ask("a"))
        await asyncio.sleep(0.01)
        others = [asyncio.ensure_future(ask(word)) for word in "bcd"]
        await asyncio.sleep(0.05)
        assert predictor.calls == [["a"], ["b", "c", "d"]]
        predictor.go_on.set()
        assert [answer.revision for answer in await asyncio.gather(first, *others)] == list("abcd")

    run(scene)


def test_a_call_has_a_largest_size() -> None:
    words = [str(i) for i in range(2 * MAX_QUESTIONS + 1)]

    async def scene(_: _Predictor, ask: Callable[[str], Awaitable[Ranking]]) -> None:
        assert [answer.revision for answer in await asyncio.gather(*map(ask, words))] == words

    calls = run(scene).calls
    assert [len(call) for call in calls] == [MAX_QUESTIONS, MAX_QUESTIONS, 1]
    assert [word for call in calls for word in call] == words


def test_a_faulty_question_does_not_spoil_its_neighbours() -> None:
    async def scene(_: _Predictor, ask: Callable[[str], Awaitable[Ranking]]) -> None:
        good, bad = await asyncio.gather(ask("a"), ask("long"), return_exceptions=True)
        assert isinstance(good, Ranking)
        assert isinstance(bad, InputError)

    assert run(scene).calls == [["a", "long"]]


def test_a_fault_of_the_predictor_reaches_all_and_a_dead_replica_nobody() -> None:
    async def scene(predictor: _Predictor, ask: Callable[[str], Awaitable[Ranking]]) -> None:
        predictor.errors = [RuntimeError("broken")]
        answers = await asyncio.gather(ask("a"), ask("b"), return_exceptions=True)
        assert [str(answer) for answer in answers] == ["broken", "broken"]
        predictor.errors = [RayActorError()]
        assert [answer.revision for answer in await asyncio.gather(ask("a"), ask("b"))] == ["a", "b"]

    assert run(scene).calls == [["a", "b"]] * 3


def test_who_has_gone_is_not_asked_for() -> None:
    async def scene(_: _Predictor, ask: Callable[[str], Awaitable[Ranking]]) -> None:
        gone, there = asyncio.ensure_future(ask("a")), asyncio.ensure_future(ask("b"))
        await asyncio.sleep(0)
        gone.cancel()
        assert (await there).revision == "b"
        with pytest.raises(asyncio.CancelledError):
            await gone

    assert run(scene).calls == [["b"]]


def test_a_call_ends_when_all_have_gone_and_not_before() -> None:
    request = ContextVar("request", default="none")

    async def scene(predictor: _Predictor, ask: Callable[[str], Awaitable[Ranking]]) -> None:
        predictor.go_on.clear()
        predictor.seen = request.get
        request.set("a")
        first = asyncio.ensure_future(ask("a"))
        request.set("b")
        second = asyncio.ensure_future(ask("b"))
        await asyncio.sleep(0.02)
        first.cancel()
        await asyncio.sleep(0.01)
        assert predictor.n_cancelled == 0
        second.cancel()
        await asyncio.sleep(0.01)
        assert predictor.n_cancelled == 1
        predictor.go_on.set()
        assert (await ask("c")).revision == "c"

    played = run(scene)
    assert played.calls == [["a", "b"], ["c"]]
    assert played.requests == ["none", "none"], "it is no request's, as Ray Serve ends what a request has begun with it"


def test_one_with_many_tools_keeps_nobody_waiting_and_ends_with_its_asker() -> None:
    many = tuple(Tool(f"f{i}") for i in range(TOOLS_AT_ONCE + 1))

    async def play() -> None:
        predictor = _Predictor()
        questions = Questions(predictor)
        predictor.go_on.clear()
        asked = [SelectQuery("m", "large", None, 1, many), SelectQuery("m", "small", None, 1, many[:2])]
        large, small = [asyncio.ensure_future(questions.ask(query)) for query in asked]
        await asyncio.sleep(0.05)
        assert predictor.calls == [["large"], ["small"]]
        large.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert predictor.n_cancelled == 1
        predictor.go_on.set()
        assert (await small).revision == "small"

    asyncio.run(play())
