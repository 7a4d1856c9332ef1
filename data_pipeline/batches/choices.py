"""What an answer decides under a trie of answers: the terms of the losses that learn what is decoded (DESIGN, idea 9).

The probability of an answer under a closed set is the product, over the branching nodes on its way, of a softmax over
that node's children alone (`model.decode.tools`). Everything else on the way is forced and decides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_pipeline.batches.answer_tree import AnswerTree

NO_CHILD = -1  # fills up `ChoiceTerms.children`


@dataclass(frozen=True, eq=False)
class AnswerChoices:
    """The K decisions on the way to one answer, from the root on.

    Attributes:
        depth: int32 [K]; which of the answer's tokens each decision chooses.
        taken: int32 [K]; the place of that token among the node's children.
        children: K arrays int32; the tokens that the node's children begin with.
    """

    depth: np.ndarray
    taken: np.ndarray
    children: tuple[np.ndarray, ...]


@dataclass(frozen=True, eq=False)
class ChoiceTerms:
    """The decisions of all answers of a sequence or batch: C decisions, W children at most, A answers, Q questions.

    Attributes:
        position: int32 [C]; the token whose hidden state decides.
        children: int32 [C, W]; the tokens to choose between, filled up with `NO_CHILD`.
        taken: int32 [C]; the column of the right one.
        answer: int32 [C]; which answer the decision is of.
        question: int32 [A]; which question an answer is of, of those that have choices.
        answer_weight: float32 [A]; of -log p(answer).
        set_weight: float32 [Q]; of -log of the summed p of a question's answers.
    """

    position: np.ndarray
    children: np.ndarray
    taken: np.ndarray
    answer: np.ndarray
    question: np.ndarray
    answer_weight: np.ndarray
    set_weight: np.ndarray

    @classmethod
    def empty(cls) -> ChoiceTerms:
        nothing, no_weight = np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.float32)
        return cls(nothing, np.zeros((0, 1), dtype=np.int32), nothing, nothing, nothing, no_weight, no_weight)


def list_choice_terms(
    trees: Sequence[AnswerTree], starts: np.ndarray, choices: Sequence[Sequence[AnswerChoices] | None]
) -> ChoiceTerms:
    """The decisions of the questions of one sequence; all weights are 1.

    Args:
        trees: of the questions.
        starts: int [trees], where each lies in the sequence.
        choices: for each tree one per answer, in the order of its answers; None for a tree that has none (a dialogue).
    """
    positions, taken, answers, children, question = [], [], [], [], []
    n_questions = 0
    for tree, start, of_tree in zip(trees, starts.tolist(), choices, strict=True):
        if of_tree is None:
            continue
        for position, answer in zip(tree.answer_position, of_tree, strict=True):
            positions.append(position[answer.depth] + start)
            taken.append(answer.taken)
            answers.append(np.full(len(answer.depth), len(question)))
            children += answer.children
            question.append(n_questions)
        n_questions += 1
    if not question:
        return ChoiceTerms.empty()
    return ChoiceTerms(
        position=np.concatenate(positions).astype(np.int32),
        children=_fill_up(children),
        taken=np.concatenate(taken).astype(np.int32),
        answer=np.concatenate(answers).astype(np.int32),
        question=np.array(question, dtype=np.int32),
        answer_weight=np.ones(len(question), dtype=np.float32),
        set_weight=np.ones(n_questions, dtype=np.float32),
    )


def stack_choice_terms(parts: Sequence[ChoiceTerms], n_tokens: int, pad_to_multiple: int = 1) -> ChoiceTerms:
    """The decisions of a batch, whose sequences are padded to `n_tokens` and lie behind one another.

    Args:
        parts: of the sequences.
        n_tokens: of each.
        pad_to_multiple: the number of decisions is filled up to a multiple of it with ones that have one child.
    """
    filled = [part for part in parts if len(part.question)]
    if not filled:
        return ChoiceTerms.empty()
    n_terms = sum(len(part.position) for part in filled)
    width = max(part.children.shape[1] for part in filled)
    padding = np.zeros(-n_terms % pad_to_multiple, dtype=np.int32)
    first_answer = np.cumsum([0, *(len(part.question) for part in filled)])
    first_question = np.cumsum([0, *(len(part.set_weight) for part in filled)])
    forced = np.full((len(padding), width), NO_CHILD, dtype=np.int32)
    forced[:, 0] = 0  # one child is chosen with the probability 1
    wide = [
        np.pad(part.children, ((0, 0), (0, width - part.children.shape[1])), constant_values=NO_CHILD)
        for part in filled
    ]
    rows = [row for row, part in enumerate(parts) if len(part.question)]
    return ChoiceTerms(
        position=np.concatenate(
            [*(part.position + row * n_tokens for row, part in zip(rows, filled, strict=True)), padding]
        ).astype(np.int32),
        children=np.concatenate([*wide, forced]),
        taken=np.concatenate([*(part.taken for part in filled), padding]),
        answer=np.concatenate(
            [*(part.answer + first for part, first in zip(filled, first_answer, strict=False)), padding]
        ).astype(np.int32),
        question=np.concatenate(
            [part.question + first for part, first in zip(filled, first_question, strict=False)]
        ).astype(np.int32),
        answer_weight=np.concatenate([part.answer_weight for part in filled]),
        set_weight=np.concatenate([part.set_weight for part in filled]),
    )


def _fill_up(children: Sequence[np.ndarray]) -> np.ndarray:
    """int32 [C, W], W at least 1."""
    widths = np.array([len(row) for row in children], dtype=np.int64)
    filled = np.full((len(children), max(1, int(widths.max(initial=0)))), NO_CHILD, dtype=np.int32)
    if len(children):
        filled[np.arange(filled.shape[1]) < widths[:, None]] = np.concatenate(children)
    return filled
