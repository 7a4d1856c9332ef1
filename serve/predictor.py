"""The deployment that ranks the catalogue's tools: one language model per replica, questions in batches."""

from __future__ import annotations

import asyncio

from ray import serve as ray_serve

from data_pipeline.catalog import UNKNOWN_TOOL_ID
from data_pipeline.encoding import encode_question, longest_answer
from model.bundle import load_bundle
from model.decode import Prompt, RankedTool, top_k_tools
from model.trie import CatalogTrie
from serve.batching import set_batching
from serve.config import ServeArgs
from serve.schemas import Ranking, SelectQuery

_NO_BOUND = 2**31


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
        set_batching(self._rank, args.max_batch_size, args.batch_wait_timeout_s)
        # the first pass allocates and compiles; better before the replica is called ready than in a user's request
        self._rank_blocking([(self._prompt(SelectQuery("warm up", None, 1), self._max_target_tokens), 1)])

    async def select(self, query: SelectQuery) -> Ranking:
        """Rank the catalogue's tools.

        Raises:
            InputError: the question cannot be turned into a prompt.
        """
        prompt = self._prompt(query, self._max_target_tokens)
        whole = self._prompt(query, _NO_BOUND)
        tools = await self._rank((prompt, query.k))
        return Ranking(
            tools=[(tool.tool_id, tool.probability) for tool in tools],
            is_instruction_cut=len(prompt.prompt_ids) < len(whole.prompt_ids),
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
    async def _rank(self, items: list[tuple[Prompt, int]]) -> list[list[RankedTool]]:
        self._largest_batch = max(self._largest_batch, len(items))
        return await asyncio.to_thread(self._rank_blocking, items)

    def _rank_blocking(self, items: list[tuple[Prompt, int]]) -> list[list[RankedTool]]:
        prompts = [prompt for prompt, _ in items]
        rankings = top_k_tools(self._mllm, prompts, max(k for _, k in items), self._trie, also=self._also)
        return [self._cut(ranking, k) for ranking, (_, k) in zip(rankings, items, strict=True)]

    def _cut(self, ranking: list[RankedTool], k: int) -> list[RankedTool]:
        """A batch is ranked to its largest k; each question gets back what it asked for, and `unknown`."""
        return ranking[:k] + [tool for tool in ranking[k:] if tool.tool_id in self._also]
