"""Requests outlive the replica that was answering them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from ray.exceptions import ActorDiedError

from data_pipeline.errors import InputError
from serve.engine import calls
from serve.engine.calls import ATTEMPTS, ask, ask_stream


class _Method:
    """Raises the first errors in turn, then answers what it was asked."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.n_calls = 0

    def options(self, *, stream: bool) -> _Method:
        assert stream
        return self

    def remote(self, *args: Any) -> _Response:
        self.n_calls += 1
        self.response = _Response(self.errors.pop(0) if self.errors else None, args)
        return self.response


class _Response:
    """Raises an error, or gives the arguments: at once, or one after the other; None keeps it waiting for ever."""

    def __init__(self, error: Exception | None, args: tuple[Any, ...]) -> None:
        self.error, self.args = error, args
        self.is_cancelled = False

    def __await__(self) -> Any:
        return self._answer().__await__()

    async def __aiter__(self) -> Any:
        for arg in self.args:
            if arg is None:
                await asyncio.sleep(60)
            yield arg
            if self.error is not None:
                raise self.error

    def cancel(self) -> None:
        self.is_cancelled = True

    async def _answer(self) -> Any:
        if self.error is not None:
            raise self.error
        if None in self.args:
            await asyncio.sleep(60)
        return self.args


class _WrappedError(Exception):
    cause = InputError("no such thing")


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "PAUSE_S", 0.0)


def test_a_request_is_asked_again_when_its_replica_dies() -> None:
    method = _Method(ActorDiedError(), ActorDiedError())
    assert asyncio.run(ask(method, 1, 2)) == (1, 2)
    assert method.n_calls == 3


def test_it_is_not_asked_for_ever() -> None:
    method = _Method(*[ActorDiedError()] * (ATTEMPTS + 1))
    with pytest.raises(ActorDiedError):
        asyncio.run(ask(method))
    assert method.n_calls == ATTEMPTS


def test_what_must_not_happen_twice_is_asked_once() -> None:
    method = _Method(ActorDiedError())
    with pytest.raises(ActorDiedError):
        asyncio.run(ask(method, attempts=1))
    assert method.n_calls == 1


def test_a_fault_of_the_request_is_raised_as_it_was() -> None:
    method = _Method(_WrappedError("with a trace"))
    with pytest.raises(InputError, match=r"^no such thing$"):
        asyncio.run(ask(method))
    assert method.n_calls == 1


async def _collect(method: _Method, *args: Any) -> list[Any]:
    return [answer async for answer in ask_stream(method, *args)]


def test_a_stream_begins_anew_when_its_replica_dies() -> None:
    method = _Method(ActorDiedError(), ActorDiedError())
    assert asyncio.run(_collect(method, 1, 2)) == [1, 1, 1, 2]
    assert not method.response.is_cancelled
    faulty = _Method(_WrappedError("with a trace"))
    with pytest.raises(InputError, match=r"^no such thing$"):
        asyncio.run(_collect(faulty, 1))
    with pytest.raises(ActorDiedError):
        asyncio.run(_collect(_Method(*[ActorDiedError()] * ATTEMPTS), 1))


def test_who_stops_waiting_cancels_the_call() -> None:
    async def leave(method: _Method, waiting: Any) -> bool:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(waiting, 0.05)
        return method.response.is_cancelled

    whole, streamed = _Method(), _Method()
    assert asyncio.run(leave(whole, ask(whole, None)))
    assert asyncio.run(leave(streamed, _collect(streamed, 1, None)))
    assert streamed.n_calls == 1
