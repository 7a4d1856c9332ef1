"""What a predictor replica does with its language model: batches of questions, and between them passes that turns
share; for one thread at a time.

The last of four steps: `questions.py` gathers questions into calls, the predictor makes prompts of them, `batching.py`
gathers prompts into batches, and here a batch goes through the model (serve/README.md, Rooms).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import TypeVar

import numpy as np
from llguidance import LLTokenizer

from data_pipeline.batches.cards import encode_card
from data_pipeline.batches.encoding import encode_whole_prompt, longest_answer
from data_pipeline.errors import InputError
from data_pipeline.records.catalog import Tool
from model.decode.json_text import WrittenJson, open_guide, write_json
from model.decode.kept_prefixes import KeptPrefixes, read_behind
from model.decode.retrieval import CardSearch, encode_cards, plan_passes
from model.decode.tools import ToolSearch, calibrate
from model.decode.turn_types import RunningTurn, TurnRequest
from model.decode.turn_writer import TurnBatch, TurnWriter
from model.llm.bundle import Bundle
from model.llm.shared_backbone import SharedBackbone
from model.scoring.calibration import UNCALIBRATED, Calibration
from serve.engine.cards import MAX_CARDS, CardVectors
from serve.engine.choices import N_PARTS, Choices, Question, encode_parts, to_parts, to_ranking
from serve.engine.messages import JsonQuery, PartQuery, RankedParts, Ranking

MAX_PASS_TOKENS = 128  # of turns, padding included: as long may a question wait
_Tools = tuple[str, tuple[Tool, ...] | None, str]  # a model, a caller's own tools, the medium that they must take
_Key = TypeVar("_Key", bound=Hashable)


@dataclass
class _Group:
    """The questions of a batch that go to one model, over the same tools; their places in the batch."""

    search: ToolSearch | CardSearch
    also: tuple[str, ...]
    calibration: Calibration
    count_tokens: Callable[[str], int]  # of the answer that names a tool
    questions: list[Question] = field(default_factory=list)
    places: list[int] = field(default_factory=list)


class Engine:
    """One backbone with the adapters of all bundles, each under its catalogue: it can name no other tool.

    Errors come back in the place of answers, since they belong to single questions.
    """

    def __init__(
        self, bundles: Mapping[str, Bundle], device: str, dtype: str | None, prefix_cache_bytes: int = 0
    ) -> None:
        """Arguments and errors as of `SharedBackbone`.

        Args:
            prefix_cache_bytes: of what is kept of dialogues, on the device.
        """
        self._shared = SharedBackbone(bundles, device, dtype)
        self.tokenizer = self._shared.mllm.tokenizer
        self._choices = Choices(bundles, self.tokenizer)
        self._cards = CardVectors()
        self._card_ids = lru_cache(MAX_CARDS)(partial(encode_card, self.tokenizer))
        self._writer = TurnWriter(self._shared.mllm)
        self._kept = KeptPrefixes(prefix_cache_bytes)
        self._batches: dict[str, TurnBatch] = {}  # of the models that write; whose pass comes next stands first
        self._guide: LLTokenizer | None = None  # made when JSON is first wanted
        self._n_read = 0
        self._groups: dict[_Tools, _Group] = {}
        self._faults: dict[int, InputError] = {}

    def longest_answer(self, name: str) -> int:
        """Tokens of the longest answer that names one of a model's tools: so much room must a prompt leave."""
        return self._choices.longest_answer(name)

    def read(self, questions: Sequence[Question]) -> None:
        """Run the prompts of a batch's first questions; `rank` brings the others, and answers all of them."""
        first = self._n_read
        self._n_read += len(questions)
        for key, members in _group(
            [(question.model, question.tools, question.takes) for question in questions]
        ).items():
            places = [first + i for i in members]
            asked = [questions[i] for i in members]
            try:
                self._shared.activate(key[0])
                group = self._groups.get(key) or self._open_group(*key)
                group.search.add([question.prompt for question in asked], max(question.k for question in asked))
            except InputError as error:
                self._faults |= dict.fromkeys(places, error)
                continue
            except BaseException:
                self._forget()
                raise
            group.questions += asked
            group.places += places

    def rank(self, questions: Sequence[Question]) -> list[Ranking | InputError]:
        """Rank the catalogue's tools, or a caller's own and `unknown` where the catalogue has it, for each question.

        Args:
            questions: those of the batch that were not read yet.

        Returns:
            in order the answers to all of the batch, or an error where one of a caller's tools cannot be told from
            another's beginning.
        """
        self.read(questions)
        try:
            found: dict[int, Ranking | InputError] = dict(self._faults)
            for (name, _, _), group in self._groups.items():
                self._shared.activate(name)
                rankings = group.search.run()
                bundle = self._shared.bundles[name]
                for place, question, ranking in zip(group.places, group.questions, rankings, strict=True):
                    calibrated = calibrate(ranking, group.calibration)
                    found[place] = to_ranking(question, calibrated, group.also, bundle, group.count_tokens)
            return [found[i] for i in range(self._n_read)]
        finally:
            self._forget()

    def rank_part(self, name: str, query: PartQuery) -> RankedParts:
        """Rank the parts of the user's words that an argument may be, by the model of a name."""
        mllm, owner = self._shared.activate(name), (name, self._shared.bundles[name].revision)
        encoded = encode_parts(self.tokenizer, query, mllm.max_positions)
        if encoded is None:
            return RankedParts([])
        trie, prompt = encoded
        search = ToolSearch(mllm, trie)
        cache, path, hidden, n_cached = read_behind(mllm, prompt.prompt_ids, self._kept, owner)
        search.add_read(cache, path, hidden, N_PARTS)
        return to_parts(prompt, search.run()[0], n_cached)

    def begin_json(self, query: JsonQuery) -> Generator[str, None, WrittenJson]:
        """An answer in JSON, for `step_json`; errors as of `write_json`, with its steps. It is the backbone's own: what
        an adapter has learnt, to name tools, spoils other words."""
        if self._guide is None:
            self._guide = open_guide(self.tokenizer)
        ids = encode_whole_prompt(self.tokenizer, query.prompt)
        return write_json(self._shared.mllm, self._guide, ids, query.grammar, query.max_tokens, self._kept, "bare")

    def step_json(self, writing: Generator[str, None, WrittenJson]) -> str | WrittenJson:
        """One pass of an answer: what is written of it, or the answer where it has come to its end."""
        self._shared.activate_bare()
        try:
            return next(writing)
        except StopIteration as end:
            return end.value

    def begin(self, name: str, request: TurnRequest) -> RunningTurn:
        """Put a turn of a dialogue by the model of a name among those under way; until it ends, no `take_over`.

        Raises:
            PromptTooLongError: the dialogue leaves no room for it.
        """
        self._shared.activate(name)
        bundle, cards = self._shared.bundles[name], None
        if request.tools and bundle.finds_cards:
            cards = self._encode_cards(name, [(tool.name, tool.description) for tool in request.tools])
        turn = self._writer.encode(request, cards)
        if name not in self._batches:
            owner = (name, bundle.revision)
            self._batches[name] = TurnBatch(self._writer, MAX_PASS_TOKENS, self._kept, owner)
        return self._batches[name].begin(turn)

    def step(self) -> None:
        """One pass for turns under way of one model, the models in turn; between two the engine may do other work."""
        for name in list(self._batches)[:1]:
            self._shared.activate(name)
            batch = self._batches.pop(name)
            batch.step()
            if len(batch):
                self._batches[name] = batch  # behind the others

    def leave(self, turn: RunningTurn) -> None:
        """End a turn that is under way, or was."""
        for batch in self._batches.values():
            batch.leave(turn)
        self._batches = {name: batch for name, batch in self._batches.items() if len(batch)}

    def take_over(self, name: str, bundle: Bundle) -> None:
        """Put a bundle in a model's place; where it does not fit, everything is as before. Errors as of `attach`."""
        trie = self._choices.build(bundle)
        self._shared.attach(name, bundle)
        self._choices.put(name, bundle, trie)
        self._kept.clear()

    def _forget(self) -> None:
        """What was read for a batch."""
        self._n_read, self._groups, self._faults = 0, {}, {}

    def _open_group(self, name: str, tools: tuple[Tool, ...] | None, takes: str) -> _Group:
        """A caller's own tools are chosen by their descriptions where the model learnt to, else by their names."""
        bundle, mllm, also = self._shared.bundles[name], self._shared.mllm, self._choices.also(name)
        if tools is None or not bundle.finds_cards:
            trie = self._choices.find(name, tools, takes)
            wide = bundle.wide if tools is None else None  # of a caller's tools it knows nothing
            group = _Group(ToolSearch(mllm, trie, also, wide), also, bundle.info.calibration, trie.count_tokens)
        else:  # without a trie: of ten thousand tools it costs as much as all else
            offered = {tool.tool_id: tool for tool in (*tools, *(bundle.catalog[tool_id] for tool_id in also), *tools)}
            cards = self._encode_cards(name, [(tool.call_name, tool.description) for tool in offered.values()])
            search = CardSearch(mllm, tuple(offered), cards, also)
            group = _Group(search, also, UNCALIBRATED, lambda tool_id: longest_answer(self.tokenizer, [tool_id]))
        self._groups[name, tools, takes] = group
        return group

    def finds_cards(self, name: str) -> bool:
        """Whether the model of a name tells a caller's own tools by their descriptions."""
        return self._shared.bundles[name].finds_cards

    def find_new_tools(self, name: str, tools: Sequence[Tool]) -> list[list[Tool]]:
        """Those of a caller's own tools that the model of a name, which finds cards, must read before it can choose
        among them; in portions, each for one pass."""
        cards = [self._card_ids(tool.call_name, tool.description) for tool in tools]
        new = self._cards.find_new(self._cards_of(name), cards)
        return [[tools[new[place]] for place in places] for places in plan_passes([cards[i] for i in new])]

    def read_tools(self, name: str, tools: Sequence[Tool]) -> None:
        """Read tools ahead of a question."""
        self._shared.activate(name)
        self._encode_cards(name, [(tool.call_name, tool.description) for tool in tools])

    def _encode_cards(self, name: str, tools: Sequence[tuple[str, str]]) -> np.ndarray:
        """float32 [K, D]: vectors of tools, (name, description) each, by the model of that name, which is active."""
        mllm = self._shared.mllm
        cards = [self._card_ids(*tool) for tool in tools]
        return self._cards.find(self._cards_of(name), cards, partial(encode_cards, mllm))

    def _cards_of(self, name: str) -> str:
        """What the vectors of a model's cards are kept under."""
        return f"{self._shared.bundles[name].revision}-{str(self._shared.mllm.llm.dtype).removeprefix('torch.')}"


def _group(keys: Sequence[_Key]) -> dict[_Key, list[int]]:
    """Key -> the places where it stands."""
    groups: dict[_Key, list[int]] = {}
    for i, key in enumerate(keys):
        groups.setdefault(key, []).append(i)
    return groups
