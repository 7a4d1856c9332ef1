"""Which tools the agent is offered: a dialogue's prompt holds a few, and training showed a few (DESIGN, idea 10)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from data_pipeline.records.catalog import Tool
from model.scoring.baselines import description_baseline

_FUSION_K = 60  # of reciprocal rank fusion (Cormack et al., SIGIR 2009), as they chose it


def shortlist_tools(words: str, tools: Sequence[Tool], n: int, by_cards: Sequence[str] = ()) -> list[str]:
    """The ids of the `n` tools that suit the words best, the best first.

    Two rankings are fused, by reciprocal ranks: that of the words against names and descriptions (tf-idf), which misses
    what is said otherwise, and that of the model's vectors, which misses names. A tool far down in one may be first.

    Args:
        words: what is wanted.
        tools: to choose from, with their descriptions.
        n: how many.
        by_cards: ids by the vectors of their cards, the nearest first; () where the model finds no cards.
    """
    (by_words,) = description_baseline(tools, [words], len(tools))
    scores: Counter[str] = Counter()
    for ranking in (by_words, by_cards):
        for rank, tool_id in enumerate(ranking):
            scores[tool_id] += 1 / (_FUSION_K + rank)  # pyright: ignore[reportArgumentType]  # a float count
    order = {tool.tool_id: place for place, tool in enumerate(tools)}
    return sorted(order, key=lambda tool_id: (-scores[tool_id], order[tool_id]))[:n]
