"""The deployment that ranks the catalogue's tools and writes turns: questions in batches, for one language model."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

from ray import serve as ray_serve

from data_pipeline.batches.encoding import encode_question
from data_pipeline.errors import InputError
from model.decode.json_text import WrittenJson
from model.decode.tools import Prompt
from model.decode.turn_types import TurnRequest, WrittenTurn
from model.llm.backbone import is_slow_in
from model.llm.bundle import Bundle, find_bundle, load_bundle
from serve.config import ServeArgs
from serve.engine.choices import Question
from serve.engine.local_engine import LocalEngine
from serve.engine.messages import JsonQuery, PartQuery, RankedParts, Ranking, SelectQuery, ServedModel
from serve.engine.model_engine import EngineUnavailableError, ModelEngine
from serve.engine.vllm_engine import VllmEngine
from serve.http.schemas import RequestError

logger = logging.getLogger("ray.serve")

SWITCH_INTERVAL_S = 5e-4  # the model's thread starts many small operations, each of which needs the GIL; Python's 5e-3
_NO_BOUND = 2**31
_Written = TypeVar("_Written")


@dataclass(frozen=True)
class _Model:
    """One of the models, and how long its prompts may be."""

    bundle: Bundle
    max_target_tokens: int
    reserve_tokens: int


@ray_serve.deployment
class Predictor:
    """One language model with the adapters of all bundles, each under its catalogue."""

    def __init__(self, args: ServeArgs) -> None:
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        self._folders = args.bundles
        bundles = {name: load_bundle(folder) for name, folder in self._folders.items()}
        self._device = args.resolve_device()
        self._engine = _open_engine(args, bundles, self._device)
        self._tokenizer = self._engine.tokenizer
        self._models = {name: self._prepare(name, bundle) for name, bundle in bundles.items()}
        self._followed = {name: find_bundle(folder) for name, folder in self._folders.items()}
        self._following: asyncio.Task[None] | None = None
        # the first pass allocates and compiles; better before the replica is called ready than in a user's request
        self._engine.warm_up([self._warm_up(name) for name in self._models])

    async def check_health(self) -> None:
        """Ray Serve calls this every `bundle_poll_s`: the occasion to look where links to bundles point now."""
        if self._following is not None:
            if not self._following.done():
                return
            self._following.result()  # a fault that is not the bundle's: the replica is not healthy
        self._following = asyncio.create_task(self._follow())

    async def list_models(self) -> list[ServedModel]:
        """What this replica serves now."""
        return [ServedModel.of(name, model.bundle) for name, model in self._models.items()]

    async def select(self, queries: Sequence[SelectQuery]) -> list[Ranking | InputError]:
        """Rank the catalogue's tools, or a caller's own and `unknown` where the catalogue has it, for each question.

        Returns:
            in order the answers, or an error in the place of a question that cannot be turned into a prompt, or one of
            whose tools cannot be told from another's beginning.
        """
        return await asyncio.gather(*(self._answer_or_error(query) for query in queries))

    async def rank_parts(self, model: str, queries: Sequence[PartQuery]) -> list[RankedParts]:
        """Rank the parts of a user's words that each of some arguments may be."""
        self._model(model)
        with _telling_outages():
            return await self._engine.rank_parts(model, queries)

    async def write_json(self, query: JsonQuery) -> WrittenJson:
        """An answer in JSON; InputError as of `ModelEngine`."""
        return await _await_end(self.stream_json(query))

    async def stream_json(self, query: JsonQuery) -> AsyncGenerator[str | WrittenJson, None]:
        """Write an answer in JSON: its text so far after each pass, then the answer. Errors as above."""
        with _telling_outages():
            async with aclosing(self._engine.write_json(query)) as events:
                async for event in events:
                    yield event

    async def write_turn(self, model: str, request: TurnRequest) -> WrittenTurn:
        """Write one turn of a dialogue.

        Raises:
            PromptTooLongError: the dialogue leaves no room for it.
        """
        return await _await_end(self.stream_turn(model, request))

    async def stream_turn(self, model: str, request: TurnRequest) -> AsyncGenerator[str | WrittenTurn, None]:
        """Write one turn of a dialogue: its answer so far whenever that has grown, then the turn. Errors as above."""
        self._model(model)
        with _telling_outages():
            async with aclosing(self._engine.write(model, request)) as events:
                async for event in events:
                    yield event

    async def describe(self) -> dict[str, object]:
        """What this replica runs; answered only when it can answer requests too."""
        revisions = {name: model.bundle.revision for name, model in self._models.items()}
        return {"device": self._device, "largest_batch": self._engine.largest_batch, "revisions": revisions}

    async def _answer_or_error(self, query: SelectQuery) -> Ranking | InputError:
        try:
            with _telling_outages():
                return await self._answer(query)
        except InputError as error:
            return error

    async def _answer(self, query: SelectQuery) -> Ranking:
        model = self._model(query.model)
        prompt = self._prompt(model, query, _NO_BOUND)
        is_cut = False
        if len(prompt.prompt_ids) + model.reserve_tokens > model.max_target_tokens:  # it may be too long
            whole, prompt = prompt, self._prompt(model, query, model.max_target_tokens)
            is_cut = len(prompt.prompt_ids) < len(whole.prompt_ids)
        ranking = await self._engine.answer(Question(query.model, prompt, query.k, query.tools, query.takes))
        return replace(ranking, is_instruction_cut=is_cut)

    async def _follow(self) -> None:
        """Take over the bundles that links point to now; one that is faulty is logged and left, the old one goes on."""
        for name, folder in self._folders.items():
            try:
                target = await asyncio.to_thread(find_bundle, folder)
                if target == self._followed[name]:
                    continue
                self._followed[name] = target  # a faulty one is tried once
                bundle = await asyncio.to_thread(load_bundle, target)
                await self._take_over(name, bundle)
            except InputError as error:
                logger.error("model %s goes on with bundle %s: %s", name, self._models[name].bundle.revision, error)
            else:
                logger.info("model %s took over bundle %s of %s", name, bundle.revision, target)

    async def _take_over(self, name: str, bundle: Bundle) -> None:
        def adopt() -> Question:
            self._models[name] = self._prepare(name, bundle)
            return self._warm_up(name)

        await self._engine.take_over(name, bundle, adopt)

    def _warm_up(self, name: str) -> Question:
        model = self._models[name]
        prompt = self._prompt(model, SelectQuery(name, "warm up", None, 1), model.max_target_tokens)
        return Question(name, prompt, 1, None)

    def _model(self, name: str) -> _Model:
        if name not in self._models:  # while a service is rolled over to other models
            raise RequestError(
                f"There is no model {name[:80]!r} now; GET /v1/models lists them.", 404, "model_not_found"
            )
        return self._models[name]

    def _prepare(self, name: str, bundle: Bundle) -> _Model:
        return _Model(bundle, bundle.info.max_target_tokens, self._engine.longest_answer(name))

    def _prompt(self, model: _Model, query: SelectQuery, max_target_tokens: int) -> Prompt:
        encoded = encode_question(
            self._tokenizer,
            query.instruction,
            query.vector is not None,
            (),
            max_target_tokens=max_target_tokens,
            reserve_tokens=model.reserve_tokens,
        )
        return Prompt(encoded.prompt_ids, query.vector, query.instruction)


@contextmanager
def _telling_outages() -> Iterator[None]:
    """What is wrong with the engine goes into the log; who asked is told that it is not there."""
    try:
        yield
    except EngineUnavailableError as error:
        logger.error("%s", error)
        message = "The model is not available right now; try again in a moment."
        raise RequestError(message, 503, "unavailable") from error


async def _await_end(events: AsyncGenerator[str | _Written, None]) -> _Written:
    """What comes behind the texts."""
    async with aclosing(events):
        async for event in events:
            if not isinstance(event, str):
                return event
    raise AssertionError("an answer ended without an end")


def _open_engine(args: ServeArgs, bundles: dict[str, Bundle], device: str) -> ModelEngine:
    """The engine that the config names; InputError where a bundle does not fit it."""
    dtype = None if args.dtype == "auto" else args.dtype
    if args.vllm_url is not None:
        return VllmEngine(
            bundles, args.vllm_url, n_requests=2 * args.max_batch_size, timeout_s=args.request_timeout_s, dtype=dtype
        )
    trained = next(iter(bundles.values())).info.llm_config
    if args.dtype == "auto" and is_slow_in(trained["dtype"], device) and trained.get("quantize", "none") == "none":
        dtype = "float32"
    return LocalEngine(
        bundles,
        device,
        dtype,
        prefix_cache_bytes=args.prefix_cache_bytes,
        max_batch_size=args.max_batch_size,
        wait_s=args.batch_wait_timeout_s,
    )
