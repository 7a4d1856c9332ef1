"""The deployment that ranks the catalogue's tools: one language model per replica, questions in batches."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from ray import serve as ray_serve

from data_pipeline.catalog import UNKNOWN_TOOL_ID
from data_pipeline.encoding import encode_question, longest_answer
from model.bundle import Bundle, load_bundle
from model.decode import Prompt, RankedTool, top_k_tools
from model.shared_backbone import SharedBackbone
from model.trie import CatalogTrie
from model.turn_decode import EncodedTurn, TurnWriter
from model.turn_decode_types import TurnRequest, WrittenTurn
from serve.batching import set_batching
from serve.config import ServeArgs
from serve.schemas import Ranking, SelectQuery

MAX_TRIES = 64  # of callers' own tools
_NO_BOUND = 2**31
_Key = TypeVar("_Key", bound=Hashable)


class _Item(NamedTuple):
    """A question to a model: how many tools, among which."""

    model: str
    prompt: Prompt
    k: int
    trie: CatalogTrie


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
        bundles = {name: load_bundle(folder) for name, folder in args.bundles.items()}
        self._device = args.resolve_device()
        self._shared = SharedBackbone(bundles, self._device, None if args.dtype == "auto" else args.dtype)
        self._tokenizer = self._shared.mllm.tokenizer
        self._models = {name: self._prepare(bundle) for name, bundle in bundles.items()}
        self._largest_batch = 0
        self._tries: OrderedDict[tuple[str, ...], CatalogTrie] = OrderedDict()
        self._writer = TurnWriter(self._shared.mllm)
        self._model_free = asyncio.Lock()  # one batch at a time, of questions or of turns
        for batched in (self._rank, self._write):
            set_batching(batched, args.max_batch_size, args.batch_wait_timeout_s)
        # the first pass allocates and compiles; better before the replica is called ready than in a user's request
        for name, model in self._models.items():
            warm_up = self._prompt(SelectQuery(name, "warm up", None, 1), model.max_target_tokens)
            self._rank_blocking([_Item(name, warm_up, 1, model.trie)])

    async def select(self, query: SelectQuery) -> Ranking:
        """Rank the catalogue's tools.

        Raises:
            InputError: the question cannot be turned into a prompt.
        """
        return await self._answer(query, self._models[query.model].trie)

    async def select_among(self, query: SelectQuery, tool_ids: tuple[str, ...]) -> Ranking:
        """Rank a caller's own tools, and `unknown` where the catalogue has it.

        Raises:
            InputError: as in `select`, or a name that cannot be told from another's beginning.
        """
        tool_ids = tuple(dict.fromkeys([*tool_ids, *self._models[query.model].also]))
        trie = self._tries.get(tool_ids)
        if trie is None:
            trie = self._tries[tool_ids] = CatalogTrie(tool_ids, self._tokenizer)
            if len(self._tries) > MAX_TRIES:
                self._tries.popitem(last=False)
        self._tries.move_to_end(tool_ids)
        return await self._answer(query, trie)

    async def write_turn(self, model: str, request: TurnRequest) -> WrittenTurn:
        """Write one turn of a dialogue.

        Raises:
            PromptTooLongError: the dialogue leaves no room for it.
        """
        return await self._write((model, self._writer.encode(request)))

    async def _answer(self, query: SelectQuery, trie: CatalogTrie) -> Ranking:
        prompt = self._prompt(query, self._models[query.model].max_target_tokens)
        whole = self._prompt(query, _NO_BOUND)
        tools = await self._rank(_Item(query.model, prompt, query.k, trie))
        return Ranking(
            tools=[(tool.tool_id, tool.probability) for tool in tools],
            is_instruction_cut=len(prompt.prompt_ids) < len(whole.prompt_ids),
            n_prompt_tokens=len(prompt.prompt_ids),
            n_answer_tokens=len(trie.sequences[trie.tool_ids.index(tools[0].tool_id)]),
        )

    async def describe(self) -> dict[str, object]:
        """What this replica runs; answered only when it can answer requests too."""
        return {"device": self._device, "models": list(self._models), "largest_batch": self._largest_batch}

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

    @ray_serve.batch
    async def _rank(self, items: list[_Item]) -> list[list[RankedTool]]:
        self._largest_batch = max(self._largest_batch, len(items))
        async with self._model_free:
            return await asyncio.to_thread(self._rank_blocking, items)

    @ray_serve.batch
    async def _write(self, turns: list[tuple[str, EncodedTurn]]) -> list[WrittenTurn]:
        async with self._model_free:
            return await asyncio.to_thread(self._write_blocking, turns)

    def _rank_blocking(self, items: list[_Item]) -> list[list[RankedTool]]:
        """Rank together the questions to one model over one trie."""
        found: list[list[RankedTool]] = [[] for _ in items]
        for (name, trie), members in _group([(item.model, item.trie) for item in items]).items():
            mllm, also = self._shared.activate(name), self._models[name].also
            k = min(max(items[i].k for i in members), len(trie))
            rankings = top_k_tools(mllm, [items[i].prompt for i in members], k, trie, also=also)
            for i, ranking in zip(members, rankings, strict=True):
                # a batch is ranked to its largest k; each question gets back what it asked for, and `unknown`
                cut = items[i].k
                found[i] = ranking[:cut] + [tool for tool in ranking[cut:] if tool.tool_id in also]
        return found

    def _write_blocking(self, turns: list[tuple[str, EncodedTurn]]) -> list[WrittenTurn]:
        found: list[WrittenTurn] = [WrittenTurn("", 0, 0)] * len(turns)
        for name, members in _group([name for name, _ in turns]).items():
            self._shared.activate(name)
            for i, written in zip(members, self._writer.write([turns[i][1] for i in members]), strict=True):
                found[i] = written
        return found


def _group(keys: Sequence[_Key]) -> dict[_Key, list[int]]:
    """Key -> the places where it stands."""
    groups: dict[_Key, list[int]] = {}
    for i, key in enumerate(keys):
        groups.setdefault(key, []).append(i)
    return groups
