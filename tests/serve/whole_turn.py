"""A turn of the local engine, without what it tells between its passes."""

from __future__ import annotations

from model.decode.turn_types import TurnRequest, WrittenTurn
from serve.engine.answering import Engine


def write_whole(engine: Engine, name: str, request: TurnRequest) -> WrittenTurn:
    """Make all passes."""
    return write_together(engine, [(name, request)])[0]


def write_together(engine: Engine, asked: list[tuple[str, TurnRequest]]) -> list[WrittenTurn]:
    """Make all passes of turns that begin together."""
    turns = [engine.begin(name, request) for name, request in asked]
    while any(turn.end is None for turn in turns):
        engine.step()
    return [turn.result() for turn in turns]
