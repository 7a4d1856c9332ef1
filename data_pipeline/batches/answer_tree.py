"""One question as a tree: a copy of the prompt, then the trie of its answers' tokens in depth-first order.

Answers that begin alike share those tokens, and a token sees only its ancestors, so every answer sees the prompt and
itself alone: exactly what it sees as a row of its own (DESIGN, idea 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class AnswerTree:
    """The tokens of one question, T of them, and its L loss terms.

    Attributes:
        input_ids: int32 [T]; the prompt (with MEDIA_SLOT_ID at the slot), then the trie in depth-first order. The
            last token of an answer is left out unless another answer goes on from it: nothing is predicted from it.
        position_ids: int32 [T]; depth in the tree, the position that the token has in a row of its own.
        subtree_end: int32 [T]; index after the last token below t. Query q sees key k iff k <= q < subtree_end[k].
        loss_position: int32 [L]; index of the token whose hidden state predicts.
        loss_target: int32 [L]; the id to predict.
        loss_weight: float32 [L]; how many answers bear loss on that target, so that the weighted sum over L equals
            the sum over all loss-bearing tokens of all answers as separate rows. Never 0: a target without loss is no
            term.
        answer_position: one int32 [A_i] per answer, in the given order; index of the token whose hidden state predicts
            each of its tokens, whether it bears loss or not.
    """

    input_ids: np.ndarray
    position_ids: np.ndarray
    subtree_end: np.ndarray
    loss_position: np.ndarray
    loss_target: np.ndarray
    loss_weight: np.ndarray
    answer_position: list[np.ndarray]


@dataclass
class _Node:
    """A token on the path of the answer being laid out; `index` is -1 as long as it has no child in the sequence."""

    token: int
    loss_term: int
    index: int = -1


def build_answer_tree(
    prompt_ids: np.ndarray, answers: Sequence[np.ndarray], bears_loss: Sequence[np.ndarray] | None = None
) -> AnswerTree:
    """Lay a question and its answers out as a tree.

    Args:
        prompt_ids: int32 [P], P >= 1.
        answers: token sequences, each of at least one token; equal ones simply weigh more.
        bears_loss: bool [A_i] per answer, which of its tokens are to be predicted; None = all of them.
    """
    masks = [np.ones(len(answer), dtype=bool) for answer in answers] if bears_loss is None else bears_loss
    n_prompt = len(prompt_ids)
    tokens: list[int] = prompt_ids.tolist()
    positions = list(range(n_prompt))
    subtree_end = [0] * n_prompt
    sources: list[int] = []
    targets: list[int] = []
    weights: list[int] = []
    path: list[_Node] = []
    answer_position = [np.zeros(0, dtype=np.int32)] * len(answers)

    pairs = zip(answers, masks, range(len(answers)), strict=True)
    for answer, bears, number in sorted((ids.tolist(), mask.tolist(), number) for ids, mask, number in pairs):
        shared = 0
        while shared < min(len(path), len(answer)) and path[shared].token == answer[shared]:
            weights[path[shared].loss_term] += bears[shared]
            shared += 1
        for node in path[shared:]:
            if node.index >= 0:
                subtree_end[node.index] = len(tokens)
        del path[shared:]
        for depth in range(shared, len(answer)):
            parent_index = n_prompt - 1
            if depth > 0:
                parent = path[depth - 1]
                if parent.index < 0:  # its first child: only now is the token itself needed
                    parent.index = len(tokens)
                    tokens.append(parent.token)
                    positions.append(n_prompt + depth - 1)
                    subtree_end.append(0)
                parent_index = parent.index
            path.append(_Node(answer[depth], len(targets)))
            sources.append(parent_index)
            targets.append(answer[depth])
            weights.append(int(bears[depth]))
        answer_position[number] = np.array([sources[node.loss_term] for node in path], dtype=np.int32)
    for node in path:
        if node.index >= 0:
            subtree_end[node.index] = len(tokens)
    subtree_end[:n_prompt] = [len(tokens)] * n_prompt

    loss_weight = np.array(weights, dtype=np.float32)
    is_term = loss_weight > 0
    return AnswerTree(
        input_ids=np.array(tokens, dtype=np.int32),
        position_ids=np.array(positions, dtype=np.int32),
        subtree_end=np.array(subtree_end, dtype=np.int32),
        loss_position=np.array(sources, dtype=np.int32)[is_term],
        loss_target=np.array(targets, dtype=np.int32)[is_term],
        loss_weight=loss_weight[is_term],
        answer_position=answer_position,
    )


def build_answer_row(prompt_ids: np.ndarray, answer: np.ndarray, bears_loss: np.ndarray | None = None) -> AnswerTree:
    """Lay one answer (int32 [A]) out behind its prompt as the papers do: a chain with all tokens, the last one too.

    `bears_loss` (bool [A]) says which of the answer's tokens are to be predicted; None = all of them.
    """
    n_prompt = len(prompt_ids)
    n_tokens = n_prompt + len(answer)
    is_term = np.ones(len(answer), dtype=bool) if bears_loss is None else bears_loss
    sources = np.arange(n_prompt - 1, n_tokens - 1, dtype=np.int32)
    return AnswerTree(
        input_ids=np.concatenate([prompt_ids, answer]).astype(np.int32),
        position_ids=np.arange(n_tokens, dtype=np.int32),
        subtree_end=np.full(n_tokens, n_tokens, dtype=np.int32),
        loss_position=sources[is_term],
        loss_target=answer.astype(np.int32)[is_term],
        loss_weight=np.ones(int(is_term.sum()), dtype=np.float32),
        answer_position=[sources],
    )
