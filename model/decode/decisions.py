"""What decides about given answers: log probabilities at the branching nodes on their ways, to fit a temperature on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from model.decode.tools import score_children
from model.decode.tree_cache import DecodeStats, Prompt, TreeCache, decoding
from model.decode.trie import ChoiceTrie
from model.scoring.calibration import Decision


def read_decisions(
    mllm: Any, prompts: Sequence[Prompt], answers: Sequence[Sequence[str]], trie: ChoiceTrie
) -> list[list[list[Decision]]]:
    """The decisions on the way to some answers to each prompt.

    Args:
        mllm: a `ToolLLM`.
        prompts: the batch; lengths and modalities may differ.
        answers: choices of the trie, for each prompt.
        trie: of all choices.

    Returns:
        by prompt and answer, root first; the product of what is taken is the answer's probability.
    """
    if not prompts or trie.n_nodes == 1:
        return [[[] for _ in own] for own in answers]
    wanted = [{node for answer in own for node in trie.ancestors(answer)} for own in answers]
    found: list[dict[int, np.ndarray]] = [{} for _ in prompts]
    stats = DecodeStats()
    with decoding(mllm):
        cache = TreeCache(mllm, prompts, trie.edge(0), stats)
        rows, hidden = list(range(len(prompts))), cache.hidden
        reached = [[(0, path)] for path in cache.paths]
        while True:
            nodes = [node for row in reached for node, _ in row]
            scores = iter(score_children(mllm, trie, hidden, nodes, stats))
            for row, own in zip(rows, reached, strict=True):
                found[row] |= {node: next(scores) for node, _ in own}
            following = [
                [(child, path) for node, path in own for child in trie.children(node) if child in wanted[row]]
                for row, own in zip(rows, reached, strict=True)
            ]
            kept = [i for i, own in enumerate(following) if own]
            if not kept:
                break
            if len(kept) < len(rows):
                cache.select_rows(kept)
                rows, following = [rows[i] for i in kept], [following[i] for i in kept]
            paths, hidden = cache.extend([[(path, trie.edge(child)) for child, path in own] for own in following])
            reached = [
                [(child, path) for (child, _), path in zip(own, ends, strict=True)]
                for own, ends in zip(following, paths, strict=True)
            ]
    return [
        [_decisions(trie, answer, own_found) for answer in own] for own, own_found in zip(answers, found, strict=True)
    ]


def _decisions(trie: ChoiceTrie, answer: str, found: dict[int, np.ndarray]) -> list[Decision]:
    taken = trie.choices_of(answer).taken.tolist()
    return [(child, found[node]) for node, child in zip(trie.ancestors(answer), taken, strict=True)]
