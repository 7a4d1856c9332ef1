"""What the predictor's model writes, or takes out of the user's words, counted for the metrics."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from model.decode.json_text import WrittenJson
from model.decode.turn_types import TurnRequest, WrittenTurn
from serve.chat.schemas import ChatRequest
from serve.engine.calls import ask, ask_stream
from serve.engine.messages import JsonQuery, PartQuery, RankedParts
from serve.http.telemetry import Telemetry


class WrittenByModel:
    """Asks the predictor, a deployment handle."""

    def __init__(self, predictor: Any, telemetry: Telemetry) -> None:
        self._predictor = predictor
        self._telemetry = telemetry

    async def rank_parts(self, model: str, queries: Sequence[PartQuery]) -> list[RankedParts]:
        """Which parts of the words an argument may be, likeliest first, for each query."""
        with self._telemetry.waiting("Predictor"):
            answers: list[RankedParts] = await ask(self._predictor.rank_parts, model, queries)
        self._telemetry.count_tokens(sum(answer.n_prompt_tokens for answer in answers), 0)
        return answers

    async def write_json(self, query: JsonQuery) -> WrittenJson:
        """An answer in JSON; InputError as of `ModelEngine.write_json`."""
        with self._telemetry.waiting("Predictor"):
            written: WrittenJson = await ask(self._predictor.write_json, query)
        self._telemetry.count_tokens(written.prompt_tokens, written.completion_tokens)
        return written

    async def write_turn(self, request: ChatRequest, turn: TurnRequest) -> AsyncGenerator[str | WrittenTurn, None]:
        """The beginnings of the turn's answer, where a stream is wanted, and the turn; `PromptTooLongError` where the
        dialogue leaves no room for it."""
        with self._telemetry.waiting("Predictor"):
            async with aclosing(self._ask_for_turn(request, turn)) as news:
                async for event in news:
                    if isinstance(event, WrittenTurn):
                        self._telemetry.count_tokens(event.prompt_tokens, event.completion_tokens)
                    yield event

    async def _ask_for_turn(self, request: ChatRequest, turn: TurnRequest) -> AsyncGenerator[str | WrittenTurn, None]:
        if not request.stream:
            yield await ask(self._predictor.write_turn, request.base_model, turn)
            return
        async with aclosing(ask_stream(self._predictor.stream_turn, request.base_model, turn)) as news:
            async for event in news:
                yield event
