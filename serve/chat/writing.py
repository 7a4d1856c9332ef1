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

    def write_json(self, request: ChatRequest, query: JsonQuery) -> AsyncGenerator[str | WrittenJson, None]:
        """The beginnings of an answer in JSON, where a stream is wanted, and the answer; InputError as of
        `ModelEngine.write_json`."""
        method = self._predictor.stream_json if request.stream else self._predictor.write_json
        return self._write(request, method, query)

    def write_turn(self, request: ChatRequest, turn: TurnRequest) -> AsyncGenerator[str | WrittenTurn, None]:
        """The beginnings of the turn's answer, where a stream is wanted, and the turn; `PromptTooLongError` where the
        dialogue leaves no room for it."""
        method = self._predictor.stream_turn if request.stream else self._predictor.write_turn
        return self._write(request, method, request.base_model, turn)

    async def _write(self, request: ChatRequest, method: Any, *args: Any) -> AsyncGenerator[Any, None]:
        with self._telemetry.waiting("Predictor"):
            async with aclosing(ask_stream(method, *args) if request.stream else _ask_once(method, *args)) as news:
                async for event in news:
                    if not isinstance(event, str):
                        self._telemetry.count_tokens(event.prompt_tokens, event.completion_tokens)
                    yield event


async def _ask_once(method: Any, *args: Any) -> AsyncGenerator[Any, None]:
    yield await ask(method, *args)
