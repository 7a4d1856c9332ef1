"""What a question may be answered with: tries over catalogues and callers' own tools, and a ranking of them as it is
told. It knows no language model, only its tokenizer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from data_pipeline.batches.encoding import encode_whole_prompt
from data_pipeline.records.catalog import UNKNOWN_TOOL_ID, Tool, ToolCatalog
from data_pipeline.records.prompts import VALUE_END
from model.decode.tools import Prompt, RankedTool
from model.decode.trie import ChoiceTrie
from model.llm.bundle import Bundle
from serve.engine.messages import PartQuery, RankedParts, Ranking

N_PARTS = 8  # likeliest parts of the words that are told
MAX_TRIES = 64  # of callers' own tools, and of catalogues for one kind of medium


class Question(NamedTuple):
    """A question to a model: how many tools, and among which; None = those of the model's catalogue.

    `takes` leaves out those of the catalogue that take another medium; "" leaves none out.
    """

    model: str
    prompt: Prompt
    k: int
    tools: tuple[Tool, ...] | None
    takes: str = ""


class Choices:
    """The tries of all models that are served, for one thread at a time."""

    def __init__(self, bundles: Mapping[str, Bundle], tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._catalogs = {name: bundle.catalog for name, bundle in bundles.items()}
        self._whole = {name: self.build(bundle) for name, bundle in bundles.items()}
        self._tries: OrderedDict[tuple[str, ...], ChoiceTrie] = OrderedDict()

    def build(self, bundle: Bundle) -> ChoiceTrie:
        """Over a bundle's whole catalogue; InputError as of `ChoiceTrie`."""
        return ChoiceTrie(bundle.catalog.selection_tool_ids, self._tokenizer)

    def put(self, name: str, bundle: Bundle, trie: ChoiceTrie) -> None:
        """Put a bundle, with what `build` made of it, in a model's place."""
        self._catalogs[name], self._whole[name] = bundle.catalog, trie

    def longest_answer(self, name: str) -> int:
        """Tokens of the longest answer that names one of a model's tools: so much room must a prompt leave."""
        return max(map(len, self._whole[name].sequences))

    def also(self, name: str) -> tuple[str, ...]:
        """What a model's rankings tell beside the best tools: `unknown`, where the catalogue has it."""
        return (UNKNOWN_TOOL_ID,) if UNKNOWN_TOOL_ID in self._catalogs[name] else ()

    def find(self, name: str, tools: Sequence[Tool] | None, takes: str) -> ChoiceTrie:
        """Over a caller's own tools and `also`, or over the catalogue: all of it, or those of its tools that take a
        medium or do not say what they take.

        Raises:
            InputError: one of a caller's tools cannot be told from another's beginning.
        """
        if tools is not None:
            return self._own((*(tool.tool_id for tool in tools), *self.also(name)))
        whole, catalog = self._whole[name], self._catalogs[name]
        fitting = tuple(tool_id for tool_id in whole.choices if catalog[tool_id].input_modality in ("", takes))
        return self._own(fitting) if takes and 0 < len(fitting) < len(whole) else whole

    def _own(self, tool_ids: tuple[str, ...]) -> ChoiceTrie:
        tool_ids = tuple(dict.fromkeys(tool_ids))
        trie = self._tries.get(tool_ids)
        if trie is None:
            trie = self._tries[tool_ids] = ChoiceTrie(tool_ids, self._tokenizer)
            if len(self._tries) > MAX_TRIES:
                self._tries.popitem(last=False)
        self._tries.move_to_end(tool_ids)
        return trie


def to_ranking(
    question: Question,
    ranking: Sequence[RankedTool],
    also: Sequence[str],
    bundle: Bundle,
    count_tokens: Callable[[str], int],
) -> Ranking:
    """Questions may be ranked to a larger k than they ask for; each gets what it asked for, and those of `also`.

    `count_tokens` says how long the answer that names a tool is.
    """
    tools = [*ranking[: question.k], *(tool for tool in ranking[question.k :] if tool.tool_id in also)]
    return Ranking(
        tools=[(_entry(bundle.catalog, tool.tool_id), tool.probability) for tool in tools],
        revision=bundle.revision,
        n_prompt_tokens=len(question.prompt.prompt_ids),
        n_answer_tokens=count_tokens(tools[0].tool_id),
    )


def encode_parts(tokenizer: Any, query: PartQuery, max_positions: int) -> tuple[ChoiceTrie, Prompt] | None:
    """The parts that an argument may be, each up to its closing mark, and what stands before them; None where there is
    no room for both."""
    trie = ChoiceTrie(query.parts, tokenizer, lambda part: part + VALUE_END)
    prompt_ids = encode_whole_prompt(tokenizer, query.prompt)
    fits = len(prompt_ids) + max(map(len, trie.sequences)) <= max_positions
    return (trie, Prompt(prompt_ids)) if fits else None


def to_parts(prompt: Prompt, ranking: Sequence[RankedTool], n_cached: int = 0) -> RankedParts:
    """Its ranking, as it is told."""
    return RankedParts([(choice.tool_id, choice.probability) for choice in ranking], len(prompt.prompt_ids), n_cached)


def _entry(catalog: ToolCatalog, tool_id: str) -> Tool:
    return catalog[tool_id] if tool_id in catalog else Tool(tool_id)
