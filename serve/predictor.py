"""The deployment that ranks the catalogue's tools: one language model per replica, questions in batches."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from ray import serve as ray_serve

from data_pipeline.catalog import UNKNOWN_TOOL_ID
from data_pipeline.encoding import encode_question, longest_answer
from model.bundle import load_bundle
from model.decode import Prompt, RankedTool, top_k_tools
from model.trie import CatalogTrie
from model.turn_decode import EncodedTurn, TurnWriter
from model.turn_decode_types import TurnRequest, WrittenTurn
from serve.batching import set_batching
from serve.config import ServeArgs
from serve.schemas import Ranking, SelectQuery

MAX_TRIES = 64  # of callers' own tools
_NO_BOUND = 2**31
_Item = tuple[Prompt, int, CatalogTrie]  # a question, how many tools, among which


@ray_serve.deployment
class Predictor:
    """The bundle's language model under the catalogue's trie. It can name no tool that the catalogue does not hold."""

    def __init__(self, args: ServeArgs) -> None:
        bundle = load_bundle(args.bundle)
        self._device = args.resolve_device()
        self._mllm = bundle.build_mllm(self._device, None if args.dtype == "auto" else args.dtype)
        self._trie = CatalogTrie(bundle.catalog.selection_tool_ids, self._mllm.tokenizer)
        self._max_target_tokens = bundle.info.max_target_tokens
        self._reserve_tokens = longest_answer(self._mllm.tokenizer, bundle.catalog.selection_tool_ids)
        self._also = (UNKNOWN_TOOL_ID,) if UNKNOWN_TOOL_ID in bundle.catalog else ()
        self._largest_batch = 0
        self._tries: OrderedDict[tuple[str, ...], CatalogTrie] = OrderedDict()
        self._writer = TurnWriter(self._mllm)
        self._model_free = asyncio.Lock()  # one batch at a time, of questions or of turns
        for batched in (self._rank, self._write):
            set_batching(batched, args.max_batch_size, args.batch_wait_timeout_s)
        # the first pass allocates and compiles; better before the replica is called ready than in a user's request
        warm_up = self._prompt(SelectQuery("warm up", None, 1), self._max_target_tokens)
        self._rank_blocking([(warm_up, 1, self._trie)])

    async def select(self, query: SelectQuery) -> Ranking:
        """Rank the catalogue's tools.

        Raises:
            InputError: the question cannot be turned into a prompt.
        """
        return await self._answer(query, self._trie)

    async def select_among(self, query: SelectQuery, tool_ids: tuple[str, ...]) -> Ranking:
        """Rank a caller's own tools, and `unknown` where the catalogue has it.

        Raises:
            InputError: as in `select`, or a name that cannot be told from another's beginning.
        """
        trie = self._tries.get(tool_ids)
        if trie is None:
            trie = CatalogTrie(list(dict.fromkeys([*tool_ids, *self._also])), self._mllm.tokenizer)
            self._tries[tool_ids] = trie
            if len(self._tries) > MAX_TRIES:
                self._tries.popitem(last=False)
        self._tries.move_to_end(tool_ids)
        return await self._answer(query, trie)

    async def write_turn(self, request: TurnRequest) -> WrittenTurn:
        """Write one turn of a dialogue.

        Raises:
            PromptTooLongError: the dialogue leaves no room for it.
        """
        return await self._write(self._writer.encode(request))

    async def _answer(self, query: SelectQuery, trie: CatalogTrie) -> Ranking:
        prompt = self._prompt(query, self._max_target_tokens)
        whole = self._prompt(query, _NO_BOUND)
        tools = await self._rank((prompt, query.k, trie))
        return Ranking(
            tools=[(tool.tool_id, tool.probability) for tool in tools],
            is_instruction_cut=len(prompt.prompt_ids) < len(whole.prompt_ids),
            n_prompt_tokens=len(prompt.prompt_ids),
            n_answer_tokens=len(trie.sequences[trie.tool_ids.index(tools[0].tool_id)]),
        )

    async def describe(self) -> dict[str, object]:
        """What this replica runs; answered only when it can answer requests too."""
        return {"device": self._device, "tools": len(self._trie), "largest_batch": self._largest_batch}

    def _prompt(self, query: SelectQuery, max_target_tokens: int) -> Prompt:
        encoded = encode_question(
            self._mllm.tokenizer,
            query.instruction,
            query.vector is not None,
            (),
            max_target_tokens=max_target_tokens,
            reserve_tokens=self._reserve_tokens,
        )
        return Prompt(encoded.prompt_ids, query.vector)

    @ray_serve.batch
    async def _rank(self, items: list[_Item]) -> list[list[RankedTool]]:
        self._largest_batch = max(self._largest_batch, len(items))
        async with self._model_free:
            return await asyncio.to_thread(self._rank_blocking, items)

    @ray_serve.batch
    async def _write(self, turns: list[EncodedTurn]) -> list[WrittenTurn]:
        async with self._model_free:
            return await asyncio.to_thread(self._writer.write, turns)

    def _rank_blocking(self, items: list[_Item]) -> list[list[RankedTool]]:
        """Rank the questions over each trie together."""
        found: list[list[RankedTool]] = [[] for _ in items]
        for trie in dict.fromkeys(trie for _, _, trie in items):
            members = [i for i, item in enumerate(items) if item[2] is trie]
            k = min(max(items[i][1] for i in members), len(trie))
            rankings = top_k_tools(self._mllm, [items[i][0] for i in members], k, trie, also=self._also)
            for i, ranking in zip(members, rankings, strict=True):
                found[i] = self._cut(ranking, items[i][1])
        return found

    def _cut(self, ranking: list[RankedTool], k: int) -> list[RankedTool]:
        """A batch is ranked to its largest k; each question gets back what it asked for, and `unknown`."""
        return ranking[:k] + [tool for tool in ranking[k:] if tool.tool_id in self._also]
