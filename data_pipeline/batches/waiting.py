"""A bound on waiting for data: an actor of Ray Data's may be lost with its node, and nobody be told."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, wait
from typing import TypeVar

Item = TypeVar("Item")

LONGEST_WAIT_S = 300.0  # for the next of what has begun to come; collectives of other ranks give up after 30 minutes
NO_DATA = "no data has come for"  # what the error begins with, by which it is told from a fault of the code


def iterate_within(items: Iterator[Item], longest_wait_s: float = LONGEST_WAIT_S) -> Iterator[Item]:
    """The same items in the same order. The first one, for which nodes may have to be started, is waited for as long as
    it takes.

    Args:
        items: asked for in other threads, one at a time.
        longest_wait_s: for each item after the first, in seconds.

    Raises:
        RuntimeError: an item has not come in that time. Whoever waited is to be given up: `items` is in use still.
    """
    for item in items:
        yield item
        break
    while True:
        found = _ask(items)
        if not wait([found], longest_wait_s).done:
            raise RuntimeError(f"{NO_DATA} {longest_wait_s:g} s: the process that makes it is gone.")
        try:
            item = found.result()
        except StopIteration:
            return
        yield item


def _ask(items: Iterator[Item]) -> Future[Item]:
    """The next item, or what was raised in its place."""
    future: Future[Item] = Future()

    def run() -> None:
        try:
            future.set_result(next(items))
        except BaseException as error:  # noqa: BLE001  (it belongs to who waits)
            future.set_exception(error)

    # not of a pool: that would be joined at exit, and so wait for what never comes
    threading.Thread(target=run, name="next-data", daemon=True).start()
    return future
