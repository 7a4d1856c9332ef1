"""Texts for a call's arguments, taken out of the user's words: which of their parts, the model weighs.

A part is a run of words. Every part has a probability behind a prompt that names the argument (`render_argument`), by
the exact search that chooses tools; no value is made up, and two arguments do not share words where they need not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence

from data_pipeline.errors import InputError
from data_pipeline.records.catalog import UNKNOWN_TOOL_ID
from data_pipeline.records.prompts import render_argument
from serve.artifacts import Artifact
from serve.chat.arguments import build_arguments
from serve.chat.content import Conversation
from serve.chat.schemas import ChatCompletion, ChatRequest, Usage
from serve.chat.stream import answer_with_tool, choose
from serve.chat.tools import OfferedTool, ToolChoice
from serve.engine.messages import PartQuery, RankedParts

MAX_CHARS = 4000  # of words that are taken apart
MAX_TEXTS = 8  # of one call that the model is asked for
_MAX_WORDS = 16  # of a part that does not reach to the end of the words
_MAX_STARTS = 200
_N_KEPT = 64  # ways to give each argument a part, while they are compared
_SHARED_WORDS = math.log(1e-6)  # as little likely are two arguments with the same words

_QUOTES = "'\"`\u2018\u2019\u201c\u201d\u00ab\u00bb()[]{}"
_MARKS = ".,;:!?" + _QUOTES
_QUOTED = re.compile("\"([^\"]+)\"|\u201c([^\u201d]+)\u201d|(?<!\\w)'([^']+)'(?!\\w)|`([^`]+)`")
# English words that begin or end no value of their own; other languages are weighed without such a list
_LINK_WORDS = """
and as at be by can could did do does for from get give has have how if in into is it of on or please show so tell than
that to was were what when where which who will with would
"""
_LINKS = frozenset(_LINK_WORDS.split())
_FIRST = _LINKS | {"about", "called", "me", "named", "number", "saying", "titled"}
_LAST = _LINKS | {"a", "an", "the"}

Place = tuple[int, int]
AskParts = Callable[[list[PartQuery]], Awaitable[list[RankedParts]]]


async def call_with_texts(
    ask: AskParts,
    request: ChatRequest,
    choice: ToolChoice,
    ranking: Sequence[tuple[str, float]],
    conversation: Conversation,
    usage: Usage,
) -> ChatCompletion:
    """As `answer_with_tool`; the texts of a caller's own tool are taken out of the words."""
    words, artifacts, chosen = conversation.words, conversation.artifacts, choose(choice, ranking)
    if choice.is_catalog or chosen == UNKNOWN_TOOL_ID:
        return answer_with_tool(request, choice, ranking, words, artifacts, usage)
    texts, n_read, n_cached = await copy_texts(ask, choice[chosen], words, artifacts)
    n_cached += usage.prompt_tokens_details.cached_tokens
    usage = Usage.of(usage.prompt_tokens + n_read, usage.completion_tokens, n_cached)
    return answer_with_tool(request, choice, ranking, words, artifacts, usage, texts)


async def copy_texts(
    ask: AskParts, tool: OfferedTool, words: str, artifacts: Sequence[Artifact]
) -> tuple[list[str], int, int]:
    """The values of a call's texts.

    Args:
        ask: the predictor: queries -> an answer to each.
        tool: that is called.
        words, artifacts: as `build_arguments` takes them.

    Returns:
        values of the first `MAX_TEXTS` texts, all of the words where no part is one; how many tokens the model
        read, and how many of these it had read before.
    """
    try:
        wanted = build_arguments(tool.parameters, tool.media, words, artifacts).texts[:MAX_TEXTS]
    except InputError:
        return [], 0, 0  # told where the call is made
    places = list_parts(words)
    if not wanted or len(places) < 2:
        return [], 0, 0
    queries = []
    for text in wanted:
        prompt = render_argument(words, tool.name, tool.description, text.name, text.about)
        fitting = tuple(part for part in places if text.min_length <= len(part) <= text.max_length)
        queries.append(PartQuery(prompt, fitting))
    answers = iter(await ask([query for query in queries if query.parts]))
    ranked = [next(answers) if query.parts else RankedParts([]) for query in queries]
    chosen = choose_parts([answer.parts for answer in ranked], places)
    texts = [words if part is None else words[slice(*places[part])] for part in chosen]
    return texts, sum(answer.n_prompt_tokens for answer in ranked), sum(answer.n_cached_tokens for answer in ranked)


def list_parts(words: str) -> dict[str, Place]:
    """The runs of words that may be a value, with single spaces and without marks around them -> where they stand
    first; what is quoted is among them, and so are all of the words, as they are. None where the words are too long."""
    if len(words) > MAX_CHARS:
        return {}
    found: dict[str, Place] = {}

    def add(start: int, end: int) -> None:
        part = words[start:end]
        start += len(part) - len(part.lstrip(_MARKS + " "))
        end -= len(part) - len(part.rstrip(_MARKS + " "))
        if start < end:
            found.setdefault(" ".join(words[start:end].split()), (start, end))

    tokens = [match.span() for match in re.finditer(r"\S+", words)]
    bare = [words[start:end].strip(_MARKS).lower() for start, end in tokens]
    for match in _QUOTED.finditer(words):
        add(*match.span(match.lastindex or 0))
    for i, (start, _) in enumerate(tokens[:_MAX_STARTS]):
        if bare[i] in _FIRST:
            continue
        for j in [*range(i, min(len(tokens), i + _MAX_WORDS)), len(tokens) - 1]:
            if bare[j] not in _LAST:
                add(start, tokens[j][1])
    found.setdefault(" ".join(words.split()), (0, len(words)))
    return found


def choose_parts(ranked: Sequence[Sequence[tuple[str, float]]], places: Mapping[str, Place]) -> list[str | None]:
    """One part for each argument: the likeliest together, of which no two share words if that can be.

    Args:
        ranked: per argument (part, probability), likeliest first; none where it is left open.
        places: part -> where it stands.
    """
    ways: list[tuple[float, tuple[str | None, ...]]] = [(0.0, ())]
    for parts in ranked:
        longer = [
            (total + math.log(max(p, 1e-300)) + _SHARED_WORDS * _n_sharing(part, taken, places), (*taken, part))
            for total, taken in ways
            for part, p in parts
        ]
        ways = sorted(longer, key=lambda way: -way[0])[:_N_KEPT] or [(total, (*taken, None)) for total, taken in ways]
    return list(ways[0][1])


def _n_sharing(part: str, others: Sequence[str | None], places: Mapping[str, Place]) -> int:
    """How many of the others stand where the part stands, in part or whole."""
    start, end = places[part]
    return sum(other is not None and start < places[other][1] and places[other][0] < end for other in others)
