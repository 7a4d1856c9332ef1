"""The deployment that ranks the catalogue's tools: one language model per replica, questions in batches."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

from ray import serve as ray_serve

from data_pipeline.catalog import UNKNOWN_TOOL_ID, Tool, ToolCatalog
from data_pipeline.encoding import encode_question, longest_answer
from data_pipeline.errors import InputError
from model.bundle import Bundle, load_bundle
from model.decode import Prompt, top_k_tools
from model.shared_backbone import SharedBackbone
from model.trie import CatalogTrie
from model.turn_decode import EncodedTurn, TurnWriter
from model.turn_decode_types import TurnRequest, WrittenTurn
from serve.batching import Batcher
from serve.config import ServeArgs
from serve.schemas import Ranking, RequestError, SelectQuery
from serve.served_model import ServedModel

logger = logging.getLogger("ray.serve")

MAX_TRIES = 64  # of callers' own tools
SWITCH_INTERVAL_S = 5e-4  # the model's thread starts many small operations, each of which needs the GIL; Python's 5e-3
_NO_BOUND = 2**31
_Key = TypeVar("_Key", bound=Hashable)


class _Item(NamedTuple):
    """A question to a model: how many tools, among which; None = the catalogue's, as it is when the batch runs."""

    model: str
    prompt: Prompt
    k: int
    trie: CatalogTrie | None


@dataclass(frozen=True)
class _Model:
    """What one of the models decodes with; `also` is ranked whatever k is."""

    trie: CatalogTrie
    max_target_tokens: int
    reserve_tokens: int
    also: tuple[str, ...]


@ray_serve.deployment
class Predictor:
    """One language model with the adapters of all bundles, each under its catalogue: it can name no other tool."""

    def __init__(self, args: ServeArgs) -> None:
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        self._folders = args.bundles
        bundles = {name: load_bundle(folder) for name, folder in self._folders.items()}
        self._device = args.resolve_device()
        self._shared = SharedBackbone(bundles, self._device, None if args.dtype == "auto" else args.dtype)
        self._tokenizer = self._shared.mllm.tokenizer
        self._models = {name: self._prepare(bundle) for name, bundle in bundles.items()}
        self._followed = {name: os.path.realpath(folder) for name, folder in self._folders.items()}
        self._following: asyncio.Task[None] | None = None
        self._tries: OrderedDict[tuple[str, ...], CatalogTrie] = OrderedDict()
        self._writer = TurnWriter(self._shared.mllm)
        self._model_free = asyncio.Lock()  # one batch at a time, of questions or of turns
        batching = (args.max_batch_size, args.batch_wait_timeout_s, self._model_free)
        self._rankings = Batcher(self._rank, *batching)
        self._turns = Batcher(self._write, *batching)
        # the first pass allocates and compiles; better before the replica is called ready than in a user's request
        for name in self._models:
            self._warm_up(name)

    async def check_health(self) -> None:
        """Ray Serve calls this every `bundle_poll_s`: the occasion to look where links to bundles point now."""
        if self._following is not None:
            if not self._following.done():
                return
            self._following.result()  # a fault that is not the bundle's: the replica is not healthy
        self._following = asyncio.create_task(self._follow())

    async def list_models(self) -> list[ServedModel]:
        """What this replica serves now."""
        return [ServedModel(name, bundle.catalog, bundle.revision) for name, bundle in self._shared.bundles.items()]

    async def select(self, queries: Sequence[SelectQuery]) -> list[Ranking | InputError]:
        """Rank the catalogue's tools, or a caller's own and `unknown` where the catalogue has it, for each question.

        Returns:
            in order the answers, or an error in the place of a question that cannot be turned into a prompt, or one of
            whose tools cannot be told from another's beginning.
        """
        return await asyncio.gather(*(self._answer_or_error(query) for query in queries))

    async def _answer_or_error(self, query: SelectQuery) -> Ranking | InputError:
        try:
            trie = None if query.tool_ids is None else self._own_trie(query.model, query.tool_ids)
            return await self._answer(query, trie)
        except InputError as error:
            return error

    def _own_trie(self, model: str, tool_ids: tuple[str, ...]) -> CatalogTrie:
        tool_ids = tuple(dict.fromkeys([*tool_ids, *self._model(model).also]))
        trie = self._tries.get(tool_ids)
        if trie is None:
            trie = self._tries[tool_ids] = CatalogTrie(tool_ids, self._tokenizer)
            if len(self._tries) > MAX_TRIES:
                self._tries.popitem(last=False)
        self._tries.move_to_end(tool_ids)
        return trie

    async def write_turn(self, model: str, request: TurnRequest) -> WrittenTurn:
        """Write one turn of a dialogue.

        Raises:
            PromptTooLongError: the dialogue leaves no room for it.
        """
        self._model(model)
        return await self._turns.ask((model, self._writer.encode(request)))

    async def _answer(self, query: SelectQuery, trie: CatalogTrie | None) -> Ranking:
        model = self._model(query.model)
        prompt = self._prompt(query, _NO_BOUND)
        is_cut = False
        if len(prompt.prompt_ids) + model.reserve_tokens > model.max_target_tokens:  # it may be too long
            whole, prompt = prompt, self._prompt(query, model.max_target_tokens)
            is_cut = len(prompt.prompt_ids) < len(whole.prompt_ids)
        ranking = await self._rankings.ask(_Item(query.model, prompt, query.k, trie))
        return replace(ranking, is_instruction_cut=is_cut)

    async def describe(self) -> dict[str, object]:
        """What this replica runs; answered only when it can answer requests too."""
        revisions = {name: bundle.revision for name, bundle in self._shared.bundles.items()}
        return {"device": self._device, "largest_batch": self._rankings.largest_batch, "revisions": revisions}

    def _model(self, name: str) -> _Model:
        if name not in self._models:  # while a service is rolled over to other models
            raise RequestError(
                f"There is no model {name[:80]!r} now; GET /v1/models lists them.", 404, "model_not_found"
            )
        return self._models[name]

    async def _follow(self) -> None:
        """Take over the bundles that links point to now; one that is faulty is logged and left, the old one goes on."""
        for name, folder in self._folders.items():
            target = os.path.realpath(folder)
            if target == self._followed[name]:
                continue
            self._followed[name] = target  # a faulty one is tried once
            try:
                bundle = await asyncio.to_thread(load_bundle, target)
                async with self._model_free:
                    await asyncio.to_thread(self._take_over, name, bundle)
            except InputError as error:
                logger.error("model %s goes on with bundle %s: %s", name, self._shared.bundles[name].revision, error)
            else:
                logger.info("model %s took over bundle %s of %s", name, bundle.revision, target)

    def _take_over(self, name: str, bundle: Bundle) -> None:
        model = self._prepare(bundle)
        self._shared.attach(name, bundle)
        self._models[name] = model
        self._warm_up(name)

    def _warm_up(self, name: str) -> None:
        model = self._models[name]
        prompt = self._prompt(SelectQuery(name, "warm up", None, 1), model.max_target_tokens)
        self._rank([_Item(name, prompt, 1, None)])

    def _prepare(self, bundle: Bundle) -> _Model:
        tool_ids = bundle.catalog.selection_tool_ids
        return _Model(
            trie=CatalogTrie(tool_ids, self._tokenizer),
            max_target_tokens=bundle.info.max_target_tokens,
            reserve_tokens=longest_answer(self._tokenizer, tool_ids),
            also=(UNKNOWN_TOOL_ID,) if UNKNOWN_TOOL_ID in bundle.catalog else (),
        )

    def _prompt(self, query: SelectQuery, max_target_tokens: int) -> Prompt:
        encoded = encode_question(
            self._tokenizer,
            query.instruction,
            query.vector is not None,
            (),
            max_target_tokens=max_target_tokens,
            reserve_tokens=self._models[query.model].reserve_tokens,
        )
        return Prompt(encoded.prompt_ids, query.vector)

    def _rank(self, items: list[_Item]) -> list[Ranking]:
        """Rank together the questions to one model over one trie."""
        found: dict[int, Ranking] = {}
        for (name, own_trie), members in _group([(item.model, item.trie) for item in items]).items():
            mllm, model, bundle = self._shared.activate(name), self._models[name], self._shared.bundles[name]
            trie = model.trie if own_trie is None else own_trie
            k = min(max(items[i].k for i in members), len(trie))
            rankings = top_k_tools(mllm, [items[i].prompt for i in members], k, trie, also=model.also)
            for i, ranking in zip(members, rankings, strict=True):
                # a batch is ranked to its largest k; each question gets back what it asked for, and `unknown`
                cut = items[i].k
                tools = ranking[:cut] + [tool for tool in ranking[cut:] if tool.tool_id in model.also]
                found[i] = Ranking(
                    tools=[(_entry(bundle.catalog, tool.tool_id), tool.probability) for tool in tools],
                    revision=bundle.revision,
                    n_prompt_tokens=len(items[i].prompt.prompt_ids),
                    n_answer_tokens=len(trie.sequences[trie.tool_ids.index(tools[0].tool_id)]),
                )
        return [found[i] for i in range(len(items))]

    def _write(self, turns: list[tuple[str, EncodedTurn]]) -> list[WrittenTurn]:
        found: list[WrittenTurn] = [WrittenTurn("", 0, 0)] * len(turns)
        for name, members in _group([name for name, _ in turns]).items():
            self._shared.activate(name)
            for i, written in zip(members, self._writer.write([turns[i][1] for i in members]), strict=True):
                found[i] = written
        return found


def _entry(catalog: ToolCatalog, tool_id: str) -> Tool:
    return catalog[tool_id] if tool_id in catalog else Tool(tool_id)


def _group(keys: Sequence[_Key]) -> dict[_Key, list[int]]:
    """Key -> the places where it stands."""
    groups: dict[_Key, list[int]] = {}
    for i, key in enumerate(keys):
        groups.setdefault(key, []).append(i)
    return groups
