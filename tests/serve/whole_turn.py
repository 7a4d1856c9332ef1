"""A turn of the local engine, without what it tells between its passes."""

from __future__ import annotations

from model.decode.turn_types import TurnRequest, WrittenTurn
from serve.engine.answering import Engine


def write_whole(engine: Engine, name: str, request: TurnRequest) -> WrittenTurn:
    """Make all passes."""
    passes = engine.write(name, request)
    while True:
        try:
            next(passes)
        except StopIteration as end:
            return end.value
