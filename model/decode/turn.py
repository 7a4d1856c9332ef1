"""One turn of GPT4Tools' protocol, written under constraints: it parses, its tool is offered, its files exist.

What is closed is chosen exactly: the thought and the action are one choice between the offered tools and an answer, a
file one between the known names. Each alternative is tokenised within its whole turn, as training tokenises it, and
weighed over a trie as tools are (`model/decode/tools.py`). What is open, a text or the answer, is written greedily
within bounds. The plain way, without constraints, stays available for comparison.

A model that learnt to find tools by their cards is asked twice which tool comes next: what it would write, and which
card is nearest to what it has read. The product of the two probabilities decides. Where the nearest card is that of a
tool whose file is not there, and a tool is needed, the answer asks for that file; unless tools that are not offered,
among them those that work from words alone, or none at all, suit the words better than all that lack their files.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_pipeline.batches.encoding import encode_dialogue, encode_text
from data_pipeline.errors import InputError
from data_pipeline.records.dialogue import TURN_STOP, render_answer, render_call, render_file_wish
from model.decode.answer_text import finish_answer
from model.decode.next_token import NextToken
from model.decode.retrieval import compare_with_cards
from model.decode.tree_cache import CachedPath, DecodeStats
from model.decode.turn_row import TokenKinds, TurnRow, Writing
from model.decode.turn_types import (
    ANSWER,
    MEDIA_KINDS,
    MIN_LACKING_SHARE,
    PromptTooLongError,
    TurnArgument,
    TurnLimits,
    TurnRequest,
    TurnTool,
    WrittenTurn,
)
from model.llm.retrieval_loss import to_vectors

NO_ANSWER = "I have no answer."
# In no training dialogue is a tool wanted whose file is not there, and then a call seems less likely than it is: chosen
# on validation dialogues whose files were taken away (docs/results.md).
MAX_ANSWER_WITHOUT_FILE = 0.7

_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")
_MIN_TEXT_TOKENS = 8  # room that a prompt must leave for each text of a call, and for an answer
_MAX_CORRECTIONS = 8  # of made-up names in one answer
_SLACK_TOKENS = 8  # a text that the model spelt its own way may have more tokens when it is read again


@dataclass(frozen=True, eq=False)
class EncodedTurn:
    """A request whose prompt is known to fit; `prompt_ids` int32 [P], `cards` float32 [tools, D] or None."""

    request: TurnRequest
    prompt_ids: np.ndarray
    cards: np.ndarray | None


class TurnComposer:
    """Decides what stands in a turn, by whatever tells the next token; it runs no model itself."""

    def __init__(self, next_token: NextToken, limits: TurnLimits | None = None) -> None:
        self._next_token = next_token
        self._tokenizer = next_token.tokenizer
        self._limits = TurnLimits() if limits is None else limits
        self._max_positions = next_token.max_positions
        self._kinds = TokenKinds(next_token.tokenizer, next_token.n_tokens)

    def encode(self, request: TurnRequest, cards: np.ndarray | None = None) -> EncodedTurn:
        """Tokenise what the model reads, turn by turn as in training.

        Args:
            request: what the turn is written from.
            cards: float32 [tools, D], the vectors of the cards of the request's tools (`encode_vectors`), for a model
                that was trained to find them in dialogues; None: it decides by what it would write alone.

        Raises:
            PromptTooLongError: too few positions are left behind it for any of the turns that it may lead to.
        """
        pieces = [encode_dialogue(self._tokenizer, request.prompt, ()).prompt_ids]
        pieces += [encode_text(self._tokenizer, turn.text) for turn in request.turns]
        prompt_ids = np.concatenate(pieces)
        _check_files(request.files)
        longest = max(self._longest_answer(), *(self._longest_call(tool, request) for tool in _offers(request)), 0)
        if len(prompt_ids) + longest > self._max_positions:
            raise PromptTooLongError(
                f"The dialogue has {len(prompt_ids)} tokens and a turn may need {longest}, but the model has "
                f"{self._max_positions} positions; shorten the dialogue or offer fewer tools."
            )
        return EncodedTurn(request, prompt_ids, cards)

    def open_row(self, start: CachedPath, stats: DecodeStats, next_token: NextToken | None = None) -> TurnRow:
        """A row behind a prompt that was read, for `compose`; `next_token` answers in the place of the composer's."""
        return TurnRow(self._next_token if next_token is None else next_token, self._kinds, start, stats)

    def compose(self, turn: EncodedTurn, row: TurnRow, end: Any) -> Writing[WrittenTurn]:
        """Write one turn behind its prompt, whose end is given."""
        request = turn.request
        if not request.is_constrained:
            room = self._max_positions - row.start.length
            text = yield from row.write_freely(end, min(self._answer_limit(request), room))
            return self._finish(turn, text, [])
        offers = {tool.name: tool for tool in _offers(request)}
        by_card = _weigh_cards(turn, end)
        nearest = max(by_card, key=by_card.__getitem__, default="")
        lacking = _find_lacking(request, nearest) if request.may_answer or not offers else None
        if request.lacking_share is not None and request.lacking_share < MIN_LACKING_SHARE:
            lacking = None
        calls = list(offers) or [nearest] * (lacking is not None)
        names = [ANSWER, *calls] if request.may_answer or not calls else calls
        scores = yield from row.score("", [_head(name) for name in names])  # [names]
        if by_card and offers:
            scores[-len(offers) :] = _agree(scores[-len(offers) :], np.log([by_card[name] for name in offers]))
        choices = sorted(zip(names, scores.tolist(), strict=True), key=lambda choice: -choice[1])
        if lacking is not None and _answer_probability(choices) <= MAX_ANSWER_WITHOUT_FILE:
            return self._finish(turn, render_answer(render_file_wish(lacking)), choices)
        name = _decide(choices)
        if name == ANSWER:
            text = yield from self._write_answer(row, request)
            return self._finish(turn, render_answer(text), choices)
        values = yield from self._write_arguments(row, request, offers[name])
        return self._finish(turn, render_call(name, ", ".join(values)), choices)

    def _write_arguments(self, row: TurnRow, request: TurnRequest, tool: TurnTool) -> Writing[list[str]]:
        """The values in order, each within its kind."""
        n_texts = sum(not _known_values(argument, request) for argument in tool.arguments)
        spare = self._max_positions - row.start.length - self._longest_call(tool, request)
        limit = min(self._limits.max_text_tokens, _MIN_TEXT_TOKENS + spare // max(1, n_texts))
        text, values = _head(tool.name), []
        for i, argument in enumerate(tool.arguments):
            is_last = i == len(tool.arguments) - 1
            closing, stops = (TURN_STOP, "\n") if is_last else (",", "\n,")
            known = _known_values(argument, request)
            if known:
                scores = yield from row.score(text, [f" {value}{closing}" for value in known])
                value = known[int(scores.argmax())]
            elif argument.kind == "text":
                value = yield from row.write_text(text, limit, stops)
                value = value or _fallback_value(request.fallback_text, is_last)
            else:
                value = yield from row.write_text(text, min(limit, _MIN_TEXT_TOKENS), stops, is_number=True)
                value = _read_number(value, argument)
            values.append(value)
            text += f" {value}{closing}"
        return values

    def _write_answer(self, row: TurnRow, request: TurnRequest) -> Writing[str]:
        """The answer's text; where the model is about to make up a file name, it must choose a known one instead."""
        head, text = _head(ANSWER), ""
        room = self._max_positions - row.start.length - len(self._ids(head)) - _SLACK_TOKENS
        limit = min(self._answer_limit(request), room)
        for _ in range(_MAX_CORRECTIONS):
            left = limit - len(self._ids(text))
            if left < 1:
                break
            text, modality = yield from row.write_answer(head, text, left, request.files)
            names = _files_of(modality, request)
            if not names or len(self._ids(text + max(names, key=len))) > room:
                break
            # a comma behind it, so that no name begins another: a.tif and a.tiff may both be there
            scores = yield from row.score(head + text, [f"{name}," for name in names])
            text += names[int(scores.argmax())]
        return finish_answer(text) or NO_ANSWER

    def _finish(self, turn: EncodedTurn, text: str, choices: list[tuple[str, float]]) -> WrittenTurn:
        n_tokens = len(self._ids(text)) + (not text.endswith(TURN_STOP))
        return WrittenTurn(text, len(turn.prompt_ids), n_tokens, tuple(choices))

    def _answer_limit(self, request: TurnRequest) -> int:
        return min(self._limits.max_answer_tokens, request.max_answer_tokens or self._limits.max_answer_tokens)

    def _longest_answer(self) -> int:
        return len(self._ids(_head(ANSWER))) + _MIN_TEXT_TOKENS + _SLACK_TOKENS

    def _longest_call(self, tool: TurnTool, request: TurnRequest) -> int:
        """Tokens of a call with the longest of the known values and the shortest bound for its texts."""
        known = [_known_values(argument, request) for argument in tool.arguments]
        longest = ", ".join(max(values, key=len, default="") for values in known)
        n_texts = sum(not values for values in known)
        return len(self._ids(render_call(tool.name, longest))) + n_texts * _MIN_TEXT_TOKENS + _SLACK_TOKENS

    def _ids(self, text: str) -> np.ndarray:
        return encode_text(self._tokenizer, text)


def _head(name: str) -> str:
    """The beginning of a turn that calls a tool, or of an answer, up to where its argument or its text begins."""
    if name == ANSWER:
        return render_answer("").rstrip()
    return render_call(name, "").removesuffix(TURN_STOP).rstrip()


def _weigh_cards(turn: EncodedTurn, end: Any) -> dict[str, float]:
    """Name of each tool -> probability of its card behind the prompt's end; {} where cards decide nothing."""
    if turn.cards is None or not turn.request.may_call or not turn.request.tools:
        return {}
    (by_card,) = compare_with_cards(to_vectors(end).cpu().numpy(), turn.cards)
    return {tool.name: p for tool, p in zip(turn.request.tools, by_card.tolist(), strict=True)}


def _agree(log_p: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The product of two distributions over the tools, with as much probability in all as the first one has."""
    both = log_p + other
    return both - np.logaddexp.reduce(both) + np.logaddexp.reduce(log_p)


def _decide(choices: Sequence[tuple[str, float]]) -> str:
    """The likelier thought, whether a tool is needed, and then the likeliest tool."""
    if _answer_probability(choices) > 0.5:
        return ANSWER
    return next(name for name, _ in choices if name != ANSWER)


def _answer_probability(choices: Sequence[tuple[str, float]]) -> float:
    return math.exp(dict(choices).get(ANSWER, -math.inf))


def _offers(request: TurnRequest) -> list[TurnTool]:
    """The tools that can be called with the files at hand."""
    if not request.may_call:
        return []
    return [
        tool
        for tool in request.tools
        if all(argument.kind not in MEDIA_KINDS or _known_values(argument, request) for argument in tool.arguments)
    ]


def _find_lacking(request: TurnRequest, name: str) -> str | None:
    """The modality of which a tool needs a file and none is known; None where it has what it needs."""
    kinds = [argument.kind for tool in request.tools if tool.name == name for argument in tool.arguments]
    return next((kind for kind in kinds if kind in MEDIA_KINDS and not _files_of(kind, request)), None)


def _known_values(argument: TurnArgument, request: TurnRequest) -> list[str]:
    """The values of a closed argument; none for an open one."""
    if argument.kind in MEDIA_KINDS:
        return _files_of(argument.kind, request)
    return list(dict.fromkeys(argument.choices))


def _files_of(modality: str | None, request: TurnRequest) -> list[str]:
    """The known files of a modality."""
    return [name for name in dict.fromkeys(request.files) if name.startswith(f"{modality}/")]


def _check_files(files: Sequence[str]) -> None:
    for name in files:
        if name.partition("/")[0] not in MEDIA_KINDS or any(c.isspace() or c == "," for c in name):
            raise InputError(
                f"the file name {name[:80]!r} does not begin with image/, audio/ or video/, or holds white space or a "
                "comma; a turn could not name it: rename the file."
            )


def _fallback_value(text: str, is_last: bool) -> str:
    """The user's words as the value of a text that the model left empty."""
    return " ".join((text if is_last else text.replace(",", " ")).split())[:200] or "?"


def _read_number(text: str, argument: TurnArgument) -> str:
    """The number that was written, or the default, within the bounds."""
    found = _NUMBER.search(text)
    value = min(max(float(found[0]) if found else argument.default, argument.minimum), argument.maximum)
    return str(round(value)) if argument.kind == "integer" else f"{value:g}"
