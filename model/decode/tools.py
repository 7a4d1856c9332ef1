"""From prompts to tools: exact search under a trie of tools, mostly the catalogue's (DESIGN 3, idea 4).

The probability of a tool under the catalogue (or another set of tools) is the product, over the branching nodes on its
way, of a softmax over the logits of that node's children alone; forced tokens have probability 1. So it sums to 1 over
the set, and a tool that does not exist has none.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_pipeline.errors import InputError
from data_pipeline.records.catalog import UNKNOWN_TOOL_ID
from model.decode.pool import Opinion, ask_head
from model.decode.tree_cache import (
    CachedPath,
    DecodeStats,
    Prompt,
    TreeCache,
    causal_lm_of,
    decoding,
    pad_prompts,
    stack_media,
    token_logits,
)
from model.decode.trie import ChoiceTrie
from model.scoring.calibration import Calibration
from model.wide.head import WeightedHead

__all__ = [
    "DecodeStats",
    "Prompt",
    "RankedTool",
    "calibrate",
    "greedy_tools",
    "p_unknown",
    "score_all_tools",
    "top_k_tools",
]

MAX_DEFAULT_WIDTH = (
    16  # frontier nodes per prompt and pass; beyond it passes hardly get fewer (ray_jobs/bench/decode.py)
)


@dataclass(frozen=True)
class RankedTool:
    """A tool and its constrained probability."""

    tool_id: str
    probability: float


def p_unknown(ranking: Iterable[RankedTool]) -> float | None:
    """Probability of "none of them"; None if the ranking does not hold that entry (ask for it with `also`)."""
    return next((tool.probability for tool in ranking if tool.tool_id == UNKNOWN_TOOL_ID), None)


def calibrate(ranking: Sequence[RankedTool], calibration: Calibration) -> list[RankedTool]:
    """A ranking with probabilities that mean what they say; in the same order, see `Calibration.of_ranking`."""
    probabilities = calibration.of_ranking([tool.probability for tool in ranking])
    return [replace(tool, probability=p) for tool, p in zip(ranking, probabilities, strict=True)]


class LeafSearch:
    """Uniform-cost search for the k likeliest leaves below one prompt, `width` nodes at a time; it runs no model.

    A path is whatever its user finds the tokens of a node's ancestors by.
    """

    def __init__(
        self, trie: ChoiceTrie, k: int, also: Sequence[str], width: int, opinion: Opinion | None = None
    ) -> None:
        """`opinion` is of a wide head that is heard; the others as of `top_k_tools`."""
        self.opened: dict[int, np.ndarray] = {}  # node -> what the language model thinks of its children
        self._trie = trie
        self._opinion = opinion
        self._k = k
        self._width = width
        self._on_the_way = {node for tool_id in also for node in trie.ancestors(tool_id)}
        self._also = {trie.choices.index(tool_id) for tool_id in also}
        self._required: list[tuple[float, int, Any]] = []  # nodes on the way to a tool of `also`
        self._frontier: list[tuple[float, int, Any]] = []  # heap of (-log probability, node, parent's path)
        self._best: list[tuple[float, int]] = []  # heap of the k best (log probability, -tool): the worst comes first
        self._extra: dict[int, float] = {}

    def add_children(self, node: int, log_probability: float, path: Any, choices: np.ndarray) -> None:
        """Take note of an expanded node's children; `choices` are their log probabilities given the node."""
        children = self._trie.children(node)
        self.opened[node] = choices
        if self._opinion is not None:
            choices = self._opinion.pool(children, choices)
        for child, choice in zip(children, choices.tolist(), strict=True):
            total = log_probability + choice
            tool = int(self._trie.leaf_choice[child])
            if tool < 0:
                if child in self._on_the_way:
                    self._required.append((-total, child, path))
                elif not self._is_hopeless(total):
                    heapq.heappush(self._frontier, (-total, child, path))
                continue
            if tool in self._also:
                self._extra[tool] = total
            if len(self._best) < self._k:
                heapq.heappush(self._best, (total, -tool))
            else:
                heapq.heappushpop(self._best, (total, -tool))

    def next_nodes(self) -> list[tuple[float, int, Any]]:
        """The nodes to expand next, as (log probability, node, parent's path); none when the search is over."""
        taken, self._required = self._required, []
        for _ in range(self._width):
            if not self._frontier or self._is_hopeless(-self._frontier[0][0]):
                break
            taken.append(heapq.heappop(self._frontier))
        return [(-cost, node, path) for cost, node, path in taken]

    def ranking(self) -> list[RankedTool]:
        """The k best, likeliest first, then those of `also` that are not among them."""
        best = [(-tool, total) for total, tool in self._best]
        rest = self._extra.keys() - {tool for tool, _ in best}
        ordered = sorted(best, key=lambda pair: (-pair[1], pair[0]))
        ordered += sorted(((tool, self._extra[tool]) for tool in rest), key=lambda pair: (-pair[1], pair[0]))
        return [RankedTool(self._trie.choices[tool], float(np.exp(total))) for tool, total in ordered]

    def _is_hopeless(self, log_probability: float) -> bool:
        """No leaf below can beat the k tools at hand: it is at most as likely as its ancestor."""
        return len(self._best) == self._k and log_probability <= self._best[0][0]


def default_width(k: int) -> int:
    """Frontier nodes per prompt and pass for k tools: one more costs tokens and hardly saves a pass."""
    return min(k // 2 + 2, MAX_DEFAULT_WIDTH)


def top_k_tools(
    mllm: Any,
    prompts: Sequence[Prompt],
    k: int,
    trie: ChoiceTrie,
    *,
    also: Sequence[str] = (),
    width: int | None = None,
    wide: WeightedHead | None = None,
    stats: DecodeStats | None = None,
) -> list[list[RankedTool]]:
    """The exact k likeliest tools of every prompt, with their probabilities.

    Best-first search: each pass of the language model expands the `width` best frontier nodes of every unfinished
    prompt. A prompt is finished when k tools are known that are at least as likely as its best frontier node, so a
    width above 1 costs some tokens that were not needed and saves passes, and never changes the answer.

    Args:
        mllm: a `ToolLLM`.
        prompts: the batch; lengths and modalities may differ.
        k: how many tools; a set that holds fewer is ranked whole.
        trie: of the tools to choose from: the catalogue, or a caller's own.
        also: tool ids whose probability is wanted even outside the k best; they come behind the k best.
        width: frontier nodes per prompt and pass; by default k / 2 + 2, at most 16: one more costs tokens
            and hardly saves a pass (docs/results.md).
        wide: a head that is heard too (`model.decode.pool`); it reads the prompts' words.
        stats: filled with what it cost.

    Returns:
        per prompt min(k, len(trie)) tools in descending order, then the rest of `also`.

    Raises:
        InputError: k or width below 1, or a tool of `also` is not in the trie.
    """
    search = ToolSearch(mllm, trie, also, wide, stats)
    search.add(prompts, k, width)
    return search.run()


class ToolSearch:
    """What `top_k_tools` does, for prompts that come one after the other: run as they come, searched together."""

    def __init__(
        self,
        mllm: Any,
        trie: ChoiceTrie,
        also: Sequence[str] = (),
        wide: WeightedHead | None = None,
        stats: DecodeStats | None = None,
    ) -> None:
        """Arguments as of `top_k_tools`; `rows` are the prompts' searches."""
        self.rows: list[LeafSearch] = []
        self._mllm = mllm
        self._trie = trie
        self._also = also
        self._wide = wide
        self._stats = DecodeStats() if stats is None else stats
        self._cache: TreeCache | None = None  # as many rows as `rows`

    def add(self, prompts: Sequence[Prompt], k: int, width: int | None = None) -> None:
        """Run further prompts; not after `run`. Arguments and errors as of `top_k_tools`."""
        width = default_width(k) if width is None else width
        if k < 1 or width < 1:
            raise InputError(f"k is {k} and width {width}; both must be at least 1.")
        k = min(k, len(self._trie))
        opinions = ask_head(self._wide, self._trie, prompts)
        rows = [LeafSearch(self._trie, k, self._also, width, opinion) for opinion in opinions]
        if prompts and self._trie.n_nodes > 1:  # one tool: nothing to decide
            with decoding(self._mllm):
                self._run_prompts(prompts, rows)
        self.rows += rows

    def add_read(self, cache: TreeCache, path: CachedPath, hidden: Tensor, k: int) -> None:
        """Take over, as the only prompt, what the only row of a cache has read.

        Args:
            cache: is the search's from now on.
            path: the prompt's, to its end.
            hidden: [1, D], there.
            k: as of `top_k_tools`.
        """
        row = LeafSearch(self._trie, min(k, len(self._trie)), self._also, default_width(k))
        if self._trie.n_nodes > 1:
            with decoding(self._mllm):
                if len(forced := self._trie.edge(0)):
                    ((path,),), hidden = cache.extend([[(path, forced)]])
                (choices,) = self._score(hidden, [0])
            row.add_children(0, 0.0, path, choices)
            self._cache = cache
        self.rows = [row]

    def run(self) -> list[list[RankedTool]]:
        """The tools of every prompt, in the order in which they were added."""
        if self._trie.n_nodes == 1:
            return [[RankedTool(self._trie.choices[0], 1.0)] for _ in self.rows]
        if self._cache is None:
            return []
        with decoding(self._mllm):
            self._search(self._cache)
        return [row.ranking() for row in self.rows]

    def _run_prompts(self, prompts: Sequence[Prompt], rows: Sequence[LeafSearch]) -> None:
        cache = TreeCache(self._mllm, prompts, self._trie.edge(0), self._stats)
        for row, path, choice in zip(rows, cache.paths, self._score(cache.hidden, [0] * len(prompts)), strict=True):
            row.add_children(0, 0.0, path, choice)
        if self._cache is None:
            self._cache = cache
        else:
            self._cache.append_rows(cache)

    def _search(self, cache: TreeCache) -> None:
        active = list(self.rows)  # row i of the cache belongs to active[i]
        while True:
            nodes = [row.next_nodes() for row in active]
            kept = [i for i, taken in enumerate(nodes) if taken]
            if not kept:
                return
            if len(kept) < len(active):
                cache.select_rows(kept)
                active, nodes = [active[i] for i in kept], [nodes[i] for i in kept]
            blocks = [[(path, self._trie.edge(node)) for _, node, path in taken] for taken in nodes]
            paths, hidden = cache.extend(blocks)
            choices = iter(self._score(hidden, [node for taken in nodes for _, node, _ in taken]))
            for row, taken, ends in zip(active, nodes, paths, strict=True):
                for (log_probability, node, _), end in zip(taken, ends, strict=True):
                    row.add_children(node, log_probability, end, next(choices))

    def _score(self, hidden: Tensor, nodes: Sequence[int]) -> list[np.ndarray]:
        return score_children(self._mllm, self._trie, hidden, nodes, self._stats)


def greedy_tools(
    mllm: Any, prompts: Sequence[Prompt], trie: ChoiceTrie, *, stats: DecodeStats | None = None
) -> list[RankedTool]:
    """The tool at the end of each prompt's locally likeliest path, with its probability.

    Cheaper than `top_k_tools(k=1)` (one node per prompt and pass), but a likely beginning may hide a likelier tool.
    Arguments as there.
    """
    if trie.n_nodes == 1:
        return [RankedTool(trie.choices[0], 1.0) for _ in prompts]
    if not prompts:
        return []
    stats = DecodeStats() if stats is None else stats
    answers: list[RankedTool | None] = [None] * len(prompts)
    with decoding(mllm):
        cache = TreeCache(mllm, prompts, trie.edge(0), stats)
        hidden, rows = cache.hidden, list(range(len(prompts)))
        nodes, paths, totals = [0] * len(rows), list(cache.paths), [0.0] * len(rows)
        while True:
            for i, choice in enumerate(score_children(mllm, trie, hidden, nodes, stats)):
                nodes[i] = trie.children(nodes[i])[int(choice.argmax())]
                totals[i] += float(choice.max())
                tool = int(trie.leaf_choice[nodes[i]])
                if tool >= 0:
                    answers[rows[i]] = RankedTool(trie.choices[tool], float(np.exp(totals[i])))
            kept = [i for i, node in enumerate(nodes) if trie.leaf_choice[node] < 0]
            if not kept:
                break
            if len(kept) < len(rows):
                cache.select_rows(kept)
                rows, nodes = [rows[i] for i in kept], [nodes[i] for i in kept]
                paths, totals = [paths[i] for i in kept], [totals[i] for i in kept]
            extended, hidden = cache.extend([[(path, trie.edge(n))] for path, n in zip(paths, nodes, strict=True)])
            paths = [row[0] for row in extended]
    return [answer for answer in answers if answer is not None]


def score_all_tools(mllm: Any, prompts: Sequence[Prompt], trie: ChoiceTrie) -> np.ndarray:
    """Constrained probability of every tool by brute force: one uncached pass over the batch per tool.

    Shares neither trie, search, cache, tree mask nor head rows with the functions above, so it can vouch for them.

    Returns:
        float64 [B, n_tools] in the trie's order; each row sums to 1.
    """
    following: dict[tuple[int, ...], set[int]] = {}
    for sequence in trie.sequences:
        for i, token in enumerate(sequence.tolist()):
            following.setdefault(tuple(sequence[:i].tolist()), set()).add(token)
    result = np.zeros((len(prompts), len(trie)))
    if not prompts:
        return result
    base = causal_lm_of(mllm).base_model
    device = base.device
    with decoding(mllm):
        media = stack_media(prompts, device)
        for tool, sequence in enumerate(trie.sequences):
            ids, lengths = pad_prompts(prompts, sequence)  # [B, T]
            embeds = mllm.embed_prompt(torch.from_numpy(ids).to(device), media)
            mask = torch.from_numpy(np.arange(ids.shape[1]) < lengths[:, None]).to(device)  # [B, T]
            hidden = base(inputs_embeds=embeds, attention_mask=mask.long(), use_cache=False).last_hidden_state
            for i, token in enumerate(sequence.tolist()):
                allowed = sorted(following[tuple(sequence[:i].tolist())])
                if len(allowed) > 1:
                    before = torch.from_numpy(lengths - len(sequence) + i - 1)
                    logits = token_logits(mllm, hidden[torch.arange(len(prompts)), before])[:, allowed]  # [B, choices]
                    log_p = logits.double().log_softmax(-1)  # [B, choices]
                    result[:, tool] += log_p[:, allowed.index(token)].cpu().numpy()
    return np.exp(result)


def score_children(
    mllm: Any,
    trie: ChoiceTrie,
    hidden: Tensor,
    nodes: Sequence[int],
    stats: DecodeStats,
) -> list[np.ndarray]:
    """Log probabilities (float64) of each node's children, from the hidden states [N, D] at these nodes."""
    logits = token_logits(mllm, hidden, trie.branch_tokens).cpu().numpy().astype(np.float64)  # [N, U]
    stats.decisions += len(nodes)
    choices = []
    for row, node in zip(logits, nodes, strict=True):
        children = trie.children(node)
        scores = row[trie.branch_slot[children.start : children.stop]]
        scores -= scores.max()
        choices.append(scores - np.log(np.exp(scores).sum()))
    if not all(np.isfinite(choice).all() for choice in choices):
        raise FloatingPointError("the language model's logits are not finite: its weights or its media vectors are bad")
    return choices
