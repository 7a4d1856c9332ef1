"""Which tools a model is offered for a user's words, where there are more than a prompt should hold."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

from data_pipeline.records.catalog import Tool
from model.decode.turn_types import MEDIA_KINDS, MIN_LACKING_SHARE
from serve.agent.loop import AgentRequest
from serve.agent.shortlist import shortlist_tools, weigh_inputs
from serve.agent.tools import build_dialogue_tool, find_input
from serve.chat.selection import Selector
from serve.config import ServeArgs


class ToolOffers:
    """Ranks tools by their words and by the model's own vectors; one for all of an ingress' chats."""

    def __init__(self, args: ServeArgs, selector: Selector) -> None:
        self._max_tools = args.agent_max_tools
        self._max_chars = args.max_instruction_chars  # of words that a selection takes
        self._selector = selector

    async def choose(self, model_name: str, request: AgentRequest) -> AgentRequest:
        """The request with the tools that suit its words best, and with what all known tools that suit them take."""
        by_id = {spec.tool_id: spec for spec in request.tools}
        there = {"text", *(name.partition("/")[0] for name in request.files)}
        if len(by_id) <= self._max_tools and all(find_input(spec) in there for spec in request.tools):
            return request  # nothing to leave out, and no file to ask for
        tools = [build_dialogue_tool(spec, request.known.get(spec.tool_id)) for spec in request.tools]
        others = [tool for tool_id, tool in request.known.items() if tool_id not in by_id]
        found, ranked = await self._find(model_name, request.words, tools, self._max_tools, others)
        kept = found if len(by_id) > self._max_tools else list(by_id)
        inputs = {tool_id: tool.input_modality for tool_id, tool in request.known.items()}
        inputs |= {tool_id: find_input(spec) for tool_id, spec in by_id.items()}
        return replace(request, tools=[by_id[tool_id] for tool_id in kept], by_input=weigh_inputs(ranked, inputs))

    async def shortlist(self, model_name: str, words: str, tools: Sequence[Tool]) -> list[str]:
        """Ids of the tools that the user's words are offered: all, or the `agent_max_tools` that suit best."""
        if len(tools) <= self._max_tools:
            return [tool.tool_id for tool in tools]
        return await self.rank(model_name, words, tools, self._max_tools)

    async def rank(self, model_name: str, words: str, tools: Sequence[Tool], n: int) -> list[str]:
        """Ids of the `n` tools that suit words best, by the model's own vectors too where it was trained so."""
        found, _ = await self._find(model_name, words, tools, n)
        return found

    async def find_lacking(self, model_name: str, words: str, tools: Sequence[Tool], inputs: Mapping[str, str]) -> str:
        """The kind of file that words without one are about: "image", "audio" or "video"; "" where they need none, or
        nobody can tell.

        Args:
            model_name: asked.
            words: of the user, who gave no file.
            tools: all that are known.
            inputs: as of `weigh_inputs`.
        """
        shares = weigh_inputs(await self._rank_cards(model_name, words[: self._max_chars], tools), inputs)
        lacking = {kind: shares.get(kind, 0.0) for kind in MEDIA_KINDS}
        return max(lacking, key=lacking.__getitem__) if sum(lacking.values()) >= MIN_LACKING_SHARE else ""

    async def read(self, model_name: str, tools: Sequence[Tool]) -> None:
        """Have a model read tools before somebody asks for them, where it finds tools by their cards."""
        await self._rank_cards(model_name, "any", tools)

    async def _find(
        self, model_name: str, words: str, tools: Sequence[Tool], n: int, others: Sequence[Tool] = ()
    ) -> tuple[list[str], list[tuple[Tool, float]]]:
        """(ids of the `n` tools that suit words best; these and others by their cards); of too many words the first."""
        words, ids = words[: self._max_chars], {tool.tool_id for tool in tools}
        ranked = await self._rank_cards(model_name, words, [*tools, *others])
        by_cards = [tool.tool_id for tool, _ in ranked if tool.tool_id in ids]
        return await asyncio.to_thread(shortlist_tools, words, tools, n, by_cards), ranked

    async def _rank_cards(self, model_name: str, words: str, tools: Sequence[Tool]) -> list[tuple[Tool, float]]:
        """Tools, and `unknown`, with their probabilities by their cards, the nearest to the words first; [] where the
        model finds no cards, or nothing is said."""
        if not self._selector.models.find(model_name).finds_cards or not words.strip():
            return []
        selection = await self._selector.select(model_name, words, len(tools), tools=tuple(tools))
        return list(selection.ranking.tools)
