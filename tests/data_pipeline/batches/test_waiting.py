"""Waiting for data has an end, and changes nothing of the data."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from data_pipeline.batches.waiting import iterate_within


@pytest.mark.parametrize("n", [0, 1, 5])
def test_items_come_in_their_order(n: int) -> None:
    assert list(iterate_within(iter(range(n)))) == list(range(n))


def test_what_never_comes_is_given_up() -> None:
    never = threading.Event()

    def make() -> Iterator[int]:
        yield 1
        yield 2
        never.wait()

    items = iterate_within(make(), longest_wait_s=0.2)
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(RuntimeError, match=r"^no data has come for 0\.2 s"):
        next(items)
    never.set()


def test_the_first_item_may_take_longer() -> None:
    late = threading.Event()

    def make() -> Iterator[int]:
        late.wait()
        yield 1

    timer = threading.Timer(0.3, late.set)
    timer.start()
    assert list(iterate_within(make(), longest_wait_s=0.1)) == [1]


@pytest.mark.parametrize("error", [TimeoutError("the store did not answer"), ValueError("a bad shard")])
def test_an_error_of_what_makes_them_is_passed_on(error: Exception) -> None:
    def make() -> Iterator[int]:
        yield 1
        raise error

    items = iterate_within(make())
    next(items)
    with pytest.raises(type(error), match=str(error)):
        next(items)
