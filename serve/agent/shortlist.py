"""Which tools the agent is offered: a dialogue's prompt holds a few, and training showed a few (DESIGN, idea 10)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, zip_longest

from data_pipeline.records.catalog import Tool
from model.scoring.baselines import description_baseline


def shortlist_tools(words: str, tools: Sequence[Tool], n: int, by_cards: Sequence[str] = ()) -> list[str]:
    """The ids of the `n` tools that suit the words best, the best first.

    They come in turn from two rankings: of the words against names and descriptions (tf-idf), which misses what is said
    otherwise, and of the model's vectors, which misses names. Each so has its best half; a sum of ranks would prefer
    what is middling in both.

    Args:
        words: what is wanted.
        tools: to choose from, with their descriptions.
        n: how many.
        by_cards: ids by the vectors of their cards, the nearest first; () where the model finds no cards.
    """
    (by_words,) = description_baseline(tools, [words], len(tools))
    in_turn = chain.from_iterable(zip_longest(by_cards, by_words))
    return list(dict.fromkeys(tool_id for tool_id in in_turn if tool_id is not None))[:n]


def weigh_inputs(ranked: Iterable[tuple[Tool, float]], inputs: Mapping[str, str]) -> dict[str, float]:
    """What a tool takes -> the probability of all tools that take it.

    Args:
        ranked: tools and their probabilities.
        inputs: tool id -> "text", "image", "audio" or "video"; "" or absent where nobody says so, as of `unknown`.
    """
    shares: defaultdict[str, float] = defaultdict(float)
    for tool, probability in ranked:
        shares[inputs.get(tool.tool_id, "")] += probability
    return dict(shares)
