"""Requests outlive the replica that was answering them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from ray.exceptions import ActorDiedError

from data_pipeline.errors import InputError
from serve.engine import calls
from serve.engine.calls import ATTEMPTS, ask


class _Method:
    """Raises the first errors in turn, then answers what it was asked."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.n_calls = 0

    async def remote(self, *args: Any) -> Any:
        self.n_calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return args


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
