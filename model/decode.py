"""From prompts to tools: exact search under the catalogue's trie, and free decoding (DESIGN 3, idea 4).

The probability of a tool under the catalogue is the product, over the branching nodes on its way, of a softmax over
the logits of that node's children alone; forced tokens have probability 1. So it sums to 1 over the catalogue, and a
tool that does not exist has none.
"""

from __future__ import annotations

import heapq
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_pipeline.catalog import UNKNOWN_TOOL_ID
from data_pipeline.errors import InputError
from model.tree_cache import (
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
from model.trie import CatalogTrie

__all__ = [
    "DecodeStats",
    "Prompt",
    "RankedTool",
    "generate_free",
    "greedy_tools",
    "p_unknown",
    "score_all_tools",
    "top_k_tools",
]

ANSWER_STOP = "###"
MAX_DEFAULT_WIDTH = (
    16  # frontier nodes per prompt and pass; beyond it passes hardly get fewer (ray_jobs/bench_decode.py)
)


@dataclass(frozen=True)
class RankedTool:
    """A tool and its constrained probability."""

    tool_id: str
    probability: float


def p_unknown(ranking: Iterable[RankedTool]) -> float | None:
    """Probability of "none of them"; None if the ranking does not hold that entry (ask for it with `also`)."""
    return next((tool.probability for tool in ranking if tool.tool_id == UNKNOWN_TOOL_ID), None)


class _Search:
    """Uniform-cost search for the k likeliest leaves below one prompt."""

    def __init__(self, trie: CatalogTrie, k: int, also: Sequence[str]) -> None:
        self._trie = trie
        self._k = k
        self._on_the_way = {node for tool_id in also for node in trie.ancestors(tool_id)}
        self._also = {trie.tool_ids.index(tool_id) for tool_id in also}
        self._required: list[tuple[float, int, CachedPath]] = []  # nodes on the way to a tool of `also`
        self._frontier: list[tuple[float, int, CachedPath]] = []  # heap of (-log probability, node, parent's path)
        self._best: list[tuple[float, int]] = []  # heap of the k best (log probability, -tool): the worst comes first
        self._extra: dict[int, float] = {}

    def add_children(self, node: int, log_probability: float, path: CachedPath, choices: np.ndarray) -> None:
        """Take note of an expanded node's children; `choices` are their log probabilities given the node."""
        for child, choice in zip(self._trie.children(node), choices.tolist(), strict=True):
            total = log_probability + choice
            tool = int(self._trie.leaf_tool[child])
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

    def next_nodes(self, width: int) -> list[tuple[float, int, CachedPath]]:
        """The nodes to expand next, as (log probability, node, parent's path); none when the search is over."""
        taken, self._required = self._required, []
        for _ in range(width):
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
        return [RankedTool(self._trie.tool_ids[tool], float(np.exp(total))) for tool, total in ordered]

    def _is_hopeless(self, log_probability: float) -> bool:
        """No leaf below can beat the k tools at hand: it is at most as likely as its ancestor."""
        return len(self._best) == self._k and log_probability <= self._best[0][0]


def top_k_tools(
    mllm: Any,
    prompts: Sequence[Prompt],
    k: int,
    trie: CatalogTrie,
    *,
    also: Sequence[str] = (),
    width: int | None = None,
    stats: DecodeStats | None = None,
) -> list[list[RankedTool]]:
    """The exact k likeliest tools of every prompt, with their probabilities.

    Best-first search: each pass of the language model expands the `width` best frontier nodes of every unfinished
    prompt. A prompt is finished when k tools are known that are at least as likely as its best frontier node, so a
    width above 1 costs some tokens that were not needed and saves passes, and never changes the answer.

    Args:
        mllm: a `ToolLLM`.
        prompts: the batch; lengths and modalities may differ.
        k: how many tools; a catalogue that holds fewer is ranked whole.
        trie: the catalogue.
        also: tool ids whose probability is wanted even outside the k best; they come behind the k best.
        width: frontier nodes per prompt and pass; by default k / 2 + 2, at most 16: one more costs tokens
            and hardly saves a pass (docs/results.md).
        stats: filled with what it cost.

    Returns:
        per prompt min(k, catalogue size) tools in descending order, then the rest of `also`.

    Raises:
        InputError: k or width below 1, or a tool of `also` is not in the catalogue.
    """
    width = min(k // 2 + 2, MAX_DEFAULT_WIDTH) if width is None else width
    if k < 1 or width < 1:
        raise InputError(f"k is {k} and width {width}; both must be at least 1.")
    searches = [_Search(trie, min(k, len(trie)), also) for _ in prompts]
    if trie.n_nodes == 1:  # one tool: nothing to decide
        return [[RankedTool(trie.tool_ids[0], 1.0)] for _ in prompts]
    if not prompts:
        return []
    stats = DecodeStats() if stats is None else stats
    with decoding(mllm):
        cache = TreeCache(mllm, prompts, trie.edge(0), stats)
        choices = score_children(mllm, trie, cache.hidden, [0] * len(prompts), stats)
        for search, path, choice in zip(searches, cache.paths, choices, strict=True):
            search.add_children(0, 0.0, path, choice)
        active = list(searches)  # row i of the cache belongs to active[i]
        while True:
            nodes = [search.next_nodes(width) for search in active]
            kept = [row for row, taken in enumerate(nodes) if taken]
            if not kept:
                break
            if len(kept) < len(active):
                cache.select_rows(kept)
                active, nodes = [active[row] for row in kept], [nodes[row] for row in kept]
            blocks = [[(path, trie.edge(node)) for _, node, path in taken] for taken in nodes]
            paths, hidden = cache.extend(blocks)
            choices = iter(score_children(mllm, trie, hidden, [node for taken in nodes for _, node, _ in taken], stats))
            for search, taken, ends in zip(active, nodes, paths, strict=True):
                for (log_probability, node, _), end in zip(taken, ends, strict=True):
                    search.add_children(node, log_probability, end, next(choices))
    return [search.ranking() for search in searches]


def greedy_tools(
    mllm: Any, prompts: Sequence[Prompt], trie: CatalogTrie, *, stats: DecodeStats | None = None
) -> list[RankedTool]:
    """The tool at the end of each prompt's locally likeliest path, with its probability.

    Cheaper than `top_k_tools(k=1)` (one node per prompt and pass), but a likely beginning may hide a likelier tool.
    Arguments as there.
    """
    if trie.n_nodes == 1:
        return [RankedTool(trie.tool_ids[0], 1.0) for _ in prompts]
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
                tool = int(trie.leaf_tool[nodes[i]])
                if tool >= 0:
                    answers[rows[i]] = RankedTool(trie.tool_ids[tool], float(np.exp(totals[i])))
            kept = [i for i, node in enumerate(nodes) if trie.leaf_tool[node] < 0]
            if not kept:
                break
            if len(kept) < len(rows):
                cache.select_rows(kept)
                rows, nodes = [rows[i] for i in kept], [nodes[i] for i in kept]
                paths, totals = [paths[i] for i in kept], [totals[i] for i in kept]
            extended, hidden = cache.extend([[(path, trie.edge(n))] for path, n in zip(paths, nodes, strict=True)])
            paths = [row[0] for row in extended]
    return [answer for answer in answers if answer is not None]


def score_all_tools(mllm: Any, prompts: Sequence[Prompt], trie: CatalogTrie) -> np.ndarray:
    """Constrained probability of every tool by brute force: one uncached pass over the batch per tool.

    Shares neither trie, search, cache, tree mask nor head rows with the functions above, so it can vouch for them.

    Returns:
        float64 [B, n_tools] in catalogue order; each row sums to 1.
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
                    result[:, tool] += logits.double().log_softmax(-1)[:, allowed.index(token)].cpu().numpy()
    return np.exp(result)


def generate_free(
    mllm: Any,
    prompts: Sequence[Prompt],
    max_new_tokens: int = 64,
    n_samples: int = 1,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    *,
    stats: DecodeStats | None = None,
) -> list[list[str]]:
    """Decode without the catalogue, as the paper does (there: 10 samples at temperature 0.4, top_p 1).

    A row ends with `###` in its text, the eos token, or `max_new_tokens`. What a prompt's samples are depends on the
    seed, the prompt and its medium alone, and not on its neighbours in the batch (up to rounding).

    Args:
        mllm: a `ToolLLM`.
        prompts: the batch; each runs once, whatever `n_samples` is.
        max_new_tokens: limit for each answer.
        n_samples: answers per prompt; more than one needs a temperature above 0.
        temperature: 0 takes the likeliest token.
        top_p: sample from the smallest set of tokens that holds this probability.
        seed: of the sampling.
        stats: filled with what it cost.

    Returns:
        [prompt][sample] the decoded text up to and excluding `###`, line breaks kept.

    Raises:
        InputError: an argument is out of its range.
    """
    if max_new_tokens < 1 or n_samples < 1 or temperature < 0 or not 0 < top_p <= 1:
        raise InputError(
            f"max_new_tokens={max_new_tokens}, n_samples={n_samples}, temperature={temperature}, top_p={top_p}: the "
            "first two must be at least 1, temperature at least 0, top_p above 0 and at most 1."
        )
    if n_samples > 1 and temperature == 0:
        raise InputError(f"{n_samples} samples at temperature 0 are all the same; set a temperature, such as 0.4.")
    if not prompts:
        return []
    stats = DecodeStats() if stats is None else stats
    draws = np.concatenate([_draws(prompt, seed, n_samples, max_new_tokens) for prompt in prompts])
    produced: list[list[int]] = [[] for _ in draws]
    active = list(range(len(draws)))  # row i of the cache belongs to sample active[i]
    with decoding(mllm):
        cache = TreeCache(mllm, prompts, np.empty(0, dtype=np.int32), stats)
        origin = [sample // n_samples for sample in active]
        paths, hidden = [cache.paths[row] for row in origin], cache.hidden[origin]
        if n_samples > 1:
            cache.select_rows(origin)
        for step in range(max_new_tokens):
            tokens = _pick_tokens(token_logits(mllm, hidden), temperature, top_p, draws[active, step]).tolist()
            stats.decisions += len(tokens)
            for sample, token in zip(active, tokens, strict=True):
                produced[sample].append(token)
            kept = [
                i for i, sample in enumerate(active) if not is_finished(mllm.tokenizer, produced[sample], ANSWER_STOP)
            ]
            if not kept or step == max_new_tokens - 1:
                break
            if len(kept) < len(active):
                cache.select_rows(kept)
                active, paths = [active[i] for i in kept], [paths[i] for i in kept]
            blocks = [[(path, np.array(produced[sample][-1:]))] for path, sample in zip(paths, active, strict=True)]
            extended, hidden = cache.extend(blocks)
            paths = [row[0] for row in extended]
    texts = [decode_text(mllm.tokenizer, ids).split(ANSWER_STOP)[0] for ids in produced]
    return [texts[i : i + n_samples] for i in range(0, len(texts), n_samples)]


def score_children(
    mllm: Any, trie: CatalogTrie, hidden: Tensor, nodes: Sequence[int], stats: DecodeStats
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


def _draws(prompt: Prompt, seed: int, n_samples: int, n_tokens: int) -> np.ndarray:
    """Uniform numbers float64 [n_samples, n_tokens] that belong to this prompt wherever it is decoded."""
    content = np.asarray(prompt.prompt_ids, dtype=np.int32).tobytes()
    if prompt.media is not None:
        content += np.asarray(prompt.media, dtype=np.float32).tobytes()
    return np.random.default_rng([seed, zlib.crc32(content)]).random((n_samples, n_tokens))


def _pick_tokens(logits: Tensor, temperature: float, top_p: float, uniform: np.ndarray) -> Tensor:
    """One token per row of logits [N, V]: the likeliest, or by inverting the cumulative distribution at `uniform`."""
    if temperature == 0:
        return logits.argmax(-1)
    probabilities, order = (logits / temperature).softmax(-1).sort(dim=-1, descending=True, stable=True)
    cumulative = probabilities.cumsum(-1)
    n_kept = (cumulative - probabilities < top_p).sum(-1, keepdim=True)  # [N, 1], the nucleus of Holtzman et al. 2020
    mass = cumulative.gather(1, n_kept - 1)
    target = torch.from_numpy(uniform).to(logits)[:, None] * mass
    index = torch.minimum((cumulative <= target).sum(-1, keepdim=True), n_kept - 1)
    return order.gather(1, index)[:, 0]


def is_finished(tokenizer: Any, ids: list[int], stop: str) -> bool:
    """Whether a text just ended: with the eos token, or with the ASCII string `stop` in the last tokens.

    A token holds at least one byte, so as many tokens as `stop` has characters hold it; some more, since it may end
    inside a token.
    """
    return ids[-1] == tokenizer.eos_token_id or stop in decode_text(tokenizer, ids[-(len(stop) + 5) :])


def decode_text(tokenizer: Any, ids: list[int]) -> str:
    """The text of generated tokens, special ones left out, white space as it was generated."""
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
