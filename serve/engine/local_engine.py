"""The language model in the predictor's own process: questions in batches, passes of turns between them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

from data_pipeline.records.catalog import Tool
from model.decode.json_text import WrittenJson
from model.decode.turn_types import TurnRequest, WrittenTurn
from model.llm.bundle import Bundle
from serve.engine.answering import Engine
from serve.engine.batching import Batcher
from serve.engine.choices import Question
from serve.engine.messages import TOOLS_AT_ONCE, JsonQuery, PartQuery, RankedParts, Ranking
from serve.engine.turns import Turns

LOOKED_UP_AT_ONCE = 2048  # tools of which is found out what is new: a fifth of a second
_Result = TypeVar("_Result")


class LocalEngine:
    """A `ModelEngine`; the others are held against it."""

    def __init__(
        self,
        bundles: Mapping[str, Bundle],
        device: str,
        dtype: str | None,
        *,
        prefix_cache_bytes: int = 0,
        max_batch_size: int = 16,
        wait_s: float = 0.005,
    ) -> None:
        """The first four arguments and errors as of `Engine`, the last two as of `Batcher`."""
        self._engine = Engine(bundles, device, dtype, prefix_cache_bytes)
        self.tokenizer = self._engine.tokenizer
        self._is_free = asyncio.Lock()  # one batch of questions, or one pass of turns, at a time
        self._rankings: Batcher[Question, Ranking] = Batcher(
            self._engine.rank, max_batch_size, wait_s, self._is_free, self._engine.read
        )
        self._n_json = max_batch_size  # answers at once, as each holds memory
        self._json_places = asyncio.Semaphore(self._n_json)
        self._turns = Turns(self._engine, self._is_free, max_batch_size)

    @property
    def largest_batch(self) -> int:
        return self._rankings.largest_batch

    def longest_answer(self, name: str) -> int:
        return self._engine.longest_answer(name)

    def warm_up(self, questions: Sequence[Question]) -> None:
        self._engine.rank(questions)

    async def answer(self, question: Question) -> Ranking:
        """Many tools that the model has not read yet are read a few at a time, between which others are answered."""
        tools = question.tools or ()
        if len(tools) > TOOLS_AT_ONCE and self._engine.finds_cards(question.model):
            await self._read_tools(question.model, tools)
        return await self._rankings.ask(question)

    async def rank_parts(self, name: str, queries: Sequence[PartQuery]) -> list[RankedParts]:
        ranked: list[RankedParts] = []
        for query in queries:  # between two of them others are answered
            ranked.append(await self._run_alone(self._engine.rank_part, name, query))
        return ranked

    async def write_json(self, query: JsonQuery) -> AsyncGenerator[str | WrittenJson, None]:
        async with self._json_places:
            writing = await self._run_alone(self._engine.begin_json, query)
            written: str | WrittenJson = ""
            while not isinstance(written, WrittenJson):
                written = await self._run_alone(self._engine.step_json, writing)
                yield written

    def write(self, name: str, request: TurnRequest) -> AsyncGenerator[str | WrittenTurn, None]:
        return self._turns.write(name, request)

    @asynccontextmanager
    async def _no_json(self) -> AsyncIterator[None]:
        """Within, no answer in JSON is under way: those that are end first, those that come wait."""
        for _ in range(self._n_json):
            await self._json_places.acquire()
        try:
            yield
        finally:
            for _ in range(self._n_json):
                self._json_places.release()

    async def _read_tools(self, name: str, tools: Sequence[Tool]) -> None:
        for start in range(0, len(tools), LOOKED_UP_AT_ONCE):
            some = tools[start : start + LOOKED_UP_AT_ONCE]
            for portion in await self._run_alone(self._engine.find_new_tools, name, some):
                await self._run_alone(self._engine.read_tools, name, portion)

    async def _run_alone(self, work: Callable[..., _Result], *args: object) -> _Result:
        """Run something with the model in a thread. Who stops waiting waits for its end all the same: as long as it
        runs, the model is not free."""
        async with self._is_free:
            running = asyncio.ensure_future(asyncio.to_thread(work, *args))
            try:
                return await asyncio.shield(running)
            except asyncio.CancelledError:
                await asyncio.wait([running])
                raise

    async def take_over(self, name: str, bundle: Bundle, adopt: Callable[[], Question]) -> None:
        async with self._no_json(), self._turns.paused(), self._is_free:
            await asyncio.to_thread(self._engine.take_over, name, bundle)
            await asyncio.to_thread(self._engine.rank, [adopt()])
