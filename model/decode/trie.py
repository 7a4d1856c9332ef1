"""A closed set of answers as a radix trie over their tokens (DESIGN 3, idea 4).

The tool catalogue is one such set; a turn's thoughts and actions and the file names that it may take are others.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from data_pipeline.batches.choices import AnswerChoices
from data_pipeline.batches.encoding import encode_texts
from data_pipeline.errors import InputError
from data_pipeline.records.prompts import render_target


class ChoiceTrie:
    """Every answer of a closed set, chains with one child collapsed into one edge.

    A node stands at the end of the edge that leads to it. Nodes are numbered breadth first, node 0 is the root, and
    the children of a node are neighbours: `child_start[n]` to `child_start[n] + child_count[n] - 1`, in ascending
    order of their first token. Every node but a leaf has at least two children, so each one costs a decision and
    nothing else does. The root's edge is what all answers begin with (``{'api_name': ``).

    Attributes:
        choices: the closed set in its given order, mostly tool ids; "choice" below is an index into it.
        sequences: int32 arrays, the tokens of each choice's whole answer, as training tokenises it.
        edge_tokens: int32 [S], all edges one behind the other.
        edge_start, edge_length: int32 [N], where a node's edge lies in `edge_tokens`.
        parent: int32 [N], -1 for the root.
        child_start, child_count: int32 [N]; `child_count` is 0 at leaves.
        leaf_choice: int32 [N], the choice at a leaf, else -1.
        choice_leaf: int32 [n_choices], the leaf of a choice.
        branch_tokens: int32 [U], the distinct tokens that any decision chooses between.
        branch_slot: int32 [N], position in `branch_tokens` of the first token of a node's edge; -1 for the root.
    """

    def __init__(self, choices: Sequence[str], tokenizer: Any, render: Callable[[str], str] = render_target) -> None:
        """Tokenise each choice's answer in one piece without special tokens, and build the trie.

        Args:
            choices: a closed set: tool ids, such as a whole catalogue's, or with another `render` any texts.
            tokenizer: of the backbone.
            render: the answer that stands for a choice.

        Raises:
            InputError: the set is empty, names a choice twice, or holds two that the tokenizer cannot tell apart
                (equal tokens, or one a beginning of the other, which an end marker in `render` rules out for any
                tokenizer that loses no characters).
        """
        self.choices = tuple(choices)
        if not self.choices:
            raise InputError("there is nothing to choose from; give at least one tool, or other choice.")
        if len(set(self.choices)) != len(self.choices):
            twice = next(choice for choice in self.choices if self.choices.count(choice) > 1)
            raise InputError(f"{twice!r} is among the choices twice; keep one entry.")
        self._numbers = {choice: number for number, choice in enumerate(self.choices)}
        self.sequences = tuple(encode_texts(tokenizer, map(render, self.choices)))
        order = self._sort_and_check()
        self._build(order)

    def __len__(self) -> int:
        """The number of choices."""
        return len(self.choices)

    @property
    def n_nodes(self) -> int:
        return len(self.parent)

    @property
    def n_decisions(self) -> int:
        """The number of branching nodes."""
        return int((self.child_count > 0).sum())

    def count_tokens(self, choice: str) -> int:
        """Length of the whole answer that stands for a choice of the set."""
        return len(self.sequences[self._numbers[choice]])

    def edge(self, node: int) -> np.ndarray:
        """int32 tokens of the edge that leads to `node`."""
        start = self.edge_start[node]
        return self.edge_tokens[start : start + self.edge_length[node]]

    def children(self, node: int) -> range:
        """Nodes below `node`; empty at a leaf."""
        return range(self.child_start[node], self.child_start[node] + self.child_count[node])

    def ancestors(self, choice: str) -> list[int]:
        """The branching nodes on the way to a choice, root first.

        Raises:
            InputError: it is not in the set.
        """
        if choice not in self._numbers:
            raise InputError(f"{choice!r} is not among the {len(self)} choices; add it there first.")
        node = int(self.parent[self.choice_leaf[self._numbers[choice]]])
        path = []
        while node >= 0:
            path.append(node)
            node = int(self.parent[node])
        return path[::-1]

    def choices_of(self, choice: str) -> AnswerChoices:
        """The decisions on the way to a choice, for the losses under the trie; InputError as `ancestors`."""
        nodes = self.ancestors(choice)
        after = [*nodes[1:], int(self.choice_leaf[self._numbers[choice]])]
        return AnswerChoices(
            depth=np.cumsum(self.edge_length[nodes]).astype(np.int32),
            taken=np.array(after, dtype=np.int32) - self.child_start[nodes],
            children=tuple(self.edge_tokens[self.edge_start[list(self.children(node))]] for node in nodes),
        )

    def _sort_and_check(self) -> list[int]:
        """Choices in lexicographic order of their tokens, in which a beginning stands right before what it begins."""
        order = sorted(range(len(self)), key=lambda choice: self.sequences[choice].tolist())
        for first, second in itertools.pairwise(order):
            tokens = self.sequences[first]
            if np.array_equal(tokens, self.sequences[second][: len(tokens)]):
                raise InputError(
                    f"this tokenizer cannot tell {self.choices[first]!r} and {self.choices[second]!r} "
                    "apart: the tokens of one answer begin with those of the other; rename one of them."
                )
        return order

    def _build(self, order: list[int]) -> None:
        """Split sorted ranges of choices breadth first; a range's common beginning is that of its first and last."""
        ordered = [self.sequences[choice] for choice in order]
        edges: list[np.ndarray] = []
        parent, child_start, child_count, leaf_choice = [], [], [], []
        queue = deque([(0, len(order), 0, -1)])  # range of choices, tokens consumed so far, parent
        while queue:
            low, high, depth, above = queue.popleft()
            node = len(parent)
            first, last = ordered[low], ordered[high - 1]
            end = len(first) if high - low == 1 else depth + _common_length(first[depth:], last[depth:])
            edges.append(first[depth:end])
            parent.append(above)
            leaf_choice.append(order[low] if high - low == 1 else -1)
            child_start.append(node + 1 + len(queue))  # whatever waits in the queue gets its number first
            starts = []
            if high - low > 1:
                firsts = [ordered[i][end] for i in range(low, high)]
                starts = [low, *(low + i for i in range(1, high - low) if firsts[i] != firsts[i - 1])]
            child_count.append(len(starts))
            queue.extend((a, b, end, node) for a, b in zip(starts, [*starts[1:], high], strict=False))
        self.edge_tokens = np.concatenate(edges).astype(np.int32)
        self.edge_length = np.array([len(edge) for edge in edges], dtype=np.int32)
        self.edge_start = (np.cumsum(self.edge_length) - self.edge_length).astype(np.int32)
        self.parent = np.array(parent, dtype=np.int32)
        self.child_start = np.array(child_start, dtype=np.int32)
        self.child_count = np.array(child_count, dtype=np.int32)
        self.leaf_choice = np.array(leaf_choice, dtype=np.int32)
        leaves = np.flatnonzero(self.leaf_choice >= 0)
        self.choice_leaf = np.empty(len(self), dtype=np.int32)
        self.choice_leaf[self.leaf_choice[leaves]] = leaves
        self.branch_tokens, slots = np.unique(self.edge_tokens[self.edge_start[1:]], return_inverse=True)
        self.branch_slot = np.concatenate([[-1], slots]).astype(np.int32)


def _common_length(first: np.ndarray, second: np.ndarray) -> int:
    """Number of equal tokens at the beginning of both."""
    n = min(len(first), len(second))
    different = np.flatnonzero(first[:n] != second[:n])
    return int(different[0]) if len(different) else n
