"""Pooling a wide head's opinion with the language model's, at each decision of a trie.

A logarithmic opinion pool (Genest & Zidek 1986), taken node by node: the probability of a child is proportional to the
product of what the language model gives it and its share, by the wide head, of what lies below the node, each to the
power of its weight. So the probabilities of a set sum to 1 as before, and the search is as exact and as lazy as before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax, logsumexp

from model.decode.tree_cache import Prompt
from model.decode.trie import ChoiceTrie
from model.wide.head import WeightedHead, WideHead

_LOG_WEIGHTS = (-4.0, 3.0)  # a weight that is fitted, before the two are brought to the sum of 1
_LEAST_LOG_P = -500.0  # a mass that is 0 has no share in another
_PULL = 1.0  # towards equal weights of 1, of so many questions: a handful of them proves little


@dataclass(frozen=True)
class Opinion:
    """What a wide head thinks of one question.

    Attributes:
        shares: float64 [n_nodes], log of each node's share of its parent.
        weight: 0..1, of the head; the language model has the rest.
    """

    shares: np.ndarray
    weight: float

    def pool(self, children: range, choices: np.ndarray) -> np.ndarray:
        """Log probabilities [C] of a node's children, from the language model's."""
        pooled = (1 - self.weight) * choices + self.weight * self.shares[children.start : children.stop]
        return pooled - np.logaddexp.reduce(pooled)


def ask_head(wide: WeightedHead | None, trie: ChoiceTrie, prompts: Sequence[Prompt]) -> list[Opinion | None]:
    """The opinions of a head, if there is one, on questions that have their words, about the tools of a trie.

    Of a tool that it does not know it thinks as of the least likely that it knows.
    """
    if wide is None or not prompts:  # scikit-learn counts nothing in no texts
        return [None] * len(prompts)
    return [Opinion(shares, wide.weight) for shares in compute_shares(wide.head, trie, prompts)]


def compute_shares(head: WideHead, trie: ChoiceTrie, prompts: Sequence[Prompt]) -> np.ndarray:
    """What a head thinks of a trie's nodes: float64 [B, n_nodes], log of its share of its parent; 0 at the root."""
    known = {tool_id: column for column, tool_id in enumerate(head.tool_ids)}
    log_p = head.log_probabilities([prompt.words for prompt in prompts], [prompt.media for prompt in prompts])  # [B, K]
    columns = np.array([known.get(choice, -1) for choice in trie.choices])
    log_p = np.maximum(log_p, _LEAST_LOG_P)
    mass = np.zeros((len(prompts), trie.n_nodes))
    mass[:, trie.choice_leaf] = np.exp(np.where(columns < 0, log_p.min(axis=1, keepdims=True), log_p[:, columns]))
    for node in range(trie.n_nodes - 1, 0, -1):  # children have larger numbers than their parent
        mass[:, trie.parent[node]] += mass[:, node]
    shares = np.log(mass)
    shares[:, 1:] -= shares[:, trie.parent[1:]].copy()
    shares[:, 0] = 0
    return shares


@dataclass(frozen=True)
class Decision:
    """A node on the way to a right answer.

    Attributes:
        choices: float64 [C], the language model's log probabilities of the children.
        shares: float64 [C], the wide head's.
        taken: which child leads to the answer.
    """

    choices: np.ndarray
    shares: np.ndarray
    taken: int


def fit_weight(questions: Sequence[Sequence[Sequence[Decision]]]) -> float:
    """The head's weight with which right answers, those of a question taken together, are likeliest.

    How sharp the pool shall be is fitted along and not kept: calibration sees to that.

    Args:
        questions: held out from the training of both, at least one; for each its right answers, for each of these its
            decisions.
    """

    def cost(log_weights: np.ndarray) -> float:
        of_model, of_head = np.exp(log_weights)
        log_p = [
            logsumexp(
                [
                    sum(
                        log_softmax(of_model * decision.choices + of_head * decision.shares)[decision.taken]
                        for decision in answer
                    )
                    for answer in answers
                ]
            )
            for answers in questions
        ]
        return _PULL * float(np.square(log_weights).sum()) / 2 - float(np.sum(log_p))

    found = minimize(cost, np.zeros(2), bounds=[_LOG_WEIGHTS] * 2, method="L-BFGS-B")
    of_model, of_head = np.exp(found.x).tolist()
    return of_head / (of_model + of_head)
