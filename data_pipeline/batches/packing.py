"""Token sequences for training: packs of answer trees, or the papers' padded rows, and their batch form (numpy only).

In the layout "packed" one sequence holds many questions, each a tree (see `answer_tree`) that sees nothing of the
others; questions of a family (see `families`) grow out of one copy of the tokens with which their prompts begin. In the
layout "rows" every (question, answer) pair is a chain of its own, padded on the right to the longest of its micro
batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from data_pipeline.batches.answer_tree import AnswerTree, build_answer_row
from data_pipeline.batches.choices import AnswerChoices, ChoiceTerms, list_choice_terms, stack_choice_terms
from data_pipeline.batches.encoding import MEDIA_SLOT_ID, EncodedQuestion
from data_pipeline.batches.families import count_shared
from data_pipeline.batches.steps import fill_evenly
from data_pipeline.errors import InputError

Layout = Literal["packed", "rows"]
_ATTENTION_TOKENS = (
    1450  # length at which a dense mask costs as much as all else (SmolLM2-135M in bf16 on a core with AMX)
)


@dataclass(frozen=True, eq=False)
class Pack:
    """One sequence of T tokens with Q questions, L loss terms and M media slots; positions index the sequence.

    Attributes:
        input_ids: int32 [T], MEDIA_SLOT_ID at the slots.
        position_ids: int32 [T].
        subtree_end: int32 [T]; query q sees key k iff k <= q < subtree_end[k].
        loss_position: int32 [L].
        loss_target: int32 [L].
        loss_weight: float32 [L]; sums to the number of loss-bearing answer tokens as separate rows.
        media_position: int32 [M].
        media_row: int32 [M]; the row of the corpus' media matrix that goes there.
        n_rows: number of question-answer pairs.
        question_index: int32 [Q]; which of the caller's questions these are.
        prompt_end: int32 [Q]; the last token of each question's prompt.
        choices: what the answers decide; empty where the questions do not say.
    """

    input_ids: np.ndarray
    position_ids: np.ndarray
    subtree_end: np.ndarray
    loss_position: np.ndarray
    loss_target: np.ndarray
    loss_weight: np.ndarray
    media_position: np.ndarray
    media_row: np.ndarray
    n_rows: int
    question_index: np.ndarray
    prompt_end: np.ndarray
    choices: ChoiceTerms


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """B sequences padded to T tokens; `loss_position` and `media_position` index the flattened [B*T] tokens.

    A padding token bears no loss and sees itself alone; a loss term that is padding has the weight 0, a decision that
    is padding has one child. `lengths` (int32 [B]) counts the real tokens of each sequence; they come first. The other
    fields are those of `Pack`. In the layout "rows" every sequence is a chain, for which plain causal attention is
    enough.
    """

    layout: Layout
    input_ids: np.ndarray
    position_ids: np.ndarray
    subtree_end: np.ndarray
    lengths: np.ndarray
    loss_position: np.ndarray
    loss_target: np.ndarray
    loss_weight: np.ndarray
    media_position: np.ndarray
    media_row: np.ndarray
    n_rows: int
    question_index: np.ndarray
    prompt_end: np.ndarray
    choices: ChoiceTerms


def pack_questions(
    questions: Sequence[EncodedQuestion],
    question_index: Sequence[int] | np.ndarray,
    media_row: Sequence[int] | np.ndarray,
    family: Sequence[int] | np.ndarray | None = None,
) -> Pack:
    """Lay questions behind one another in one sequence; without any, one blind token, so that an idle rank can step.

    Args:
        questions: those of this pack, Q of them.
        question_index: [Q], their numbers in the caller's list.
        media_row: [Q], the row of each in the corpus' media matrix; -1 for text.
        family: [Q]; questions of one number share what their prompts begin with, and come together. None: all alone.

    Raises:
        InputError: a question has a media slot and no row.
    """
    n_rows = sum(len(question.answers) for question in questions)
    trees = [question.tree for question in questions]
    prompts = [len(question.prompt_ids) for question in questions]
    repeats = np.zeros(len(questions), dtype=np.int64) if family is None else _count_repeats(questions, family)
    return _concatenate(trees, prompts, [q.choices for q in questions], question_index, media_row, n_rows, repeats)


def _count_repeats(questions: Sequence[EncodedQuestion], family: Sequence[int] | np.ndarray) -> np.ndarray:
    """int64 [Q]; how many of its first tokens each question has in common with the one before it."""
    repeats = np.zeros(len(questions), dtype=np.int64)
    for members in _group_families(family):
        if len(members) > 1:
            repeats[members[1:]] = count_shared([questions[number].prompt_ids for number in members])
    return repeats


def _group_families(family: Sequence[int] | np.ndarray) -> list[np.ndarray]:
    """Runs of equal numbers, as the places of each."""
    return np.split(np.arange(len(family)), np.flatnonzero(np.diff(family)) + 1) if len(family) else []


def pack_row(question: EncodedQuestion, answer: int, question_index: int, media_row: int) -> Pack:
    """One (question, answer) pair as a chain of its own."""
    bears_loss = None if question.bears_loss is None else question.bears_loss[answer]
    row = build_answer_row(question.prompt_ids, question.answers[answer], bears_loss)
    choices = None if question.choices is None else [question.choices[answer]]
    return _concatenate(
        [row], [len(question.prompt_ids)], [choices], [question_index], [media_row], 1, np.zeros(1, int)
    )


def _concatenate(
    trees: Sequence[AnswerTree],
    prompt_lengths: Sequence[int],
    choices: Sequence[Sequence[AnswerChoices] | None],
    question_index: Sequence[int] | np.ndarray,
    media_row: Sequence[int] | np.ndarray,
    n_rows: int,
    repeats: np.ndarray,
) -> Pack:
    """Lay trees behind one another; the first `repeats` tokens of each [Q] are those that the tree before it has."""
    if not trees:
        blind = np.zeros(1, dtype=np.int32)
        nothing = np.zeros(0, dtype=np.int32)
        no_weight = np.zeros(0, dtype=np.float32)
        return Pack(
            blind,
            blind,
            blind + 1,
            nothing,
            nothing,
            no_weight,
            nothing,
            nothing,
            0,
            nothing,
            nothing,
            ChoiceTerms.empty(),
        )
    lengths = np.array([len(tree.input_ids) for tree in trees]) - repeats
    begins = np.cumsum(lengths) - lengths  # the first token in the sequence that is the tree's own
    starts = (begins - repeats).astype(np.int32)  # where its first token would be: what indexes the tree moves by this
    starts_of_losses = np.repeat(starts, [len(tree.loss_target) for tree in trees])
    input_ids = np.concatenate([tree.input_ids[n:] for tree, n in zip(trees, repeats, strict=True)])
    subtree_end = np.concatenate([tree.subtree_end[n:] for tree, n in zip(trees, repeats, strict=True)])
    subtree_end += np.repeat(starts, lengths)
    for number in np.flatnonzero(repeats):  # what is shared is above all that grow out of it
        if repeats[number - 1] == 0:
            first = begins[number - 1]
        subtree_end[first : first + repeats[number]] = begins[number] + lengths[number]
    media_position = np.flatnonzero(input_ids == MEDIA_SLOT_ID).astype(np.int32)
    media_question = np.searchsorted(begins, media_position, side="right") - 1
    media_row = np.asarray(media_row, dtype=np.int32)[media_question]
    if (media_row < 0).any():
        number = int(np.asarray(question_index)[media_question[media_row < 0]][0])
        raise InputError(
            f"question {number} has a media slot, but no row of the media matrix; embed its medium, or leave it out."
        )
    return Pack(
        input_ids=input_ids,
        position_ids=np.concatenate([tree.position_ids[n:] for tree, n in zip(trees, repeats, strict=True)]),
        subtree_end=subtree_end,
        loss_position=np.concatenate([tree.loss_position for tree in trees]) + starts_of_losses,
        loss_target=np.concatenate([tree.loss_target for tree in trees]),
        loss_weight=np.concatenate([tree.loss_weight for tree in trees]),
        media_position=media_position,
        media_row=media_row,
        n_rows=n_rows,
        question_index=np.asarray(question_index, dtype=np.int32),
        prompt_end=starts + np.array(prompt_lengths, dtype=np.int32) - 1,
        choices=list_choice_terms(trees, starts, choices),
    )


def collate(packs: Sequence[Pack], layout: Layout = "packed", pad_id: int = 0, pad_to_multiple: int = 1) -> PackedBatch:
    """Stack sequences and pad them on the right.

    Args:
        packs: B of them; the layout "packed" normally has one.
        layout: "rows" states that every pack is one chain.
        pad_id: id of padding tokens.
        pad_to_multiple: the padded length is a multiple of it, and so are the numbers of loss terms and of decisions
            (those added weigh nothing): whatever is compiled for each length is compiled for few of them.
    """
    lengths = np.array([len(pack.input_ids) for pack in packs], dtype=np.int32)
    n_tokens = int(lengths.max()) + -int(lengths.max()) % pad_to_multiple
    n_losses = sum(len(pack.loss_target) for pack in packs)
    no_losses = np.zeros(-n_losses % pad_to_multiple, dtype=np.int32)
    shape = (len(packs), n_tokens)
    input_ids = np.full(shape, pad_id, dtype=np.int32)
    position_ids = np.zeros(shape, dtype=np.int32)
    subtree_end = np.tile(np.arange(1, n_tokens + 1, dtype=np.int32), (len(packs), 1))
    for row, (pack, length) in enumerate(zip(packs, lengths, strict=True)):
        input_ids[row, :length] = pack.input_ids
        position_ids[row, :length] = pack.position_ids
        subtree_end[row, :length] = pack.subtree_end
    return PackedBatch(
        layout=layout,
        input_ids=input_ids,
        position_ids=position_ids,
        subtree_end=subtree_end,
        lengths=lengths,
        loss_position=np.concatenate(
            [*(pack.loss_position + row * n_tokens for row, pack in enumerate(packs)), no_losses]
        ),
        loss_target=np.concatenate([*(pack.loss_target for pack in packs), no_losses]),
        loss_weight=np.concatenate([*(pack.loss_weight for pack in packs), no_losses.astype(np.float32)]),
        media_position=np.concatenate([pack.media_position + row * n_tokens for row, pack in enumerate(packs)]),
        media_row=np.concatenate([pack.media_row for pack in packs]),
        n_rows=sum(pack.n_rows for pack in packs),
        question_index=np.concatenate([pack.question_index for pack in packs]),
        prompt_end=np.concatenate([pack.prompt_end + row * n_tokens for row, pack in enumerate(packs)]),
        choices=stack_choice_terms([pack.choices for pack in packs], n_tokens, pad_to_multiple),
    )


def build_micro_batch(
    questions: Sequence[EncodedQuestion],
    selection: np.ndarray,
    media_row: np.ndarray,
    pad_id: int = 0,
    pad_to_multiple: int = 1,
    sequence_tokens: int | None = None,
    cards: Sequence[EncodedQuestion] = (),
    family: np.ndarray | None = None,
) -> PackedBatch:
    """The batch of one micro step.

    Args:
        questions: all questions of the split, N of them.
        selection: what `deal_step` returned for this rank and micro step: question indices [Q] (layout "packed") or
            pairs of question index and answer number [R, 2] (layout "rows").
        media_row: int [N], the row of each question in the corpus' media matrix; -1 for text.
        pad_id: id of padding tokens.
        pad_to_multiple: see `collate`.
        sequence_tokens: in the layout "packed", lay the questions in sequences side by side, of no fewer than about so
            many tokens, where that costs less; None = in one. Attention that computes a dense mask costs the square of
            a sequence's length, whatever its tokens see, but all sequences are padded to the longest.
        cards: tool cards to lay beside the questions, in the layout "packed"; the first one's question index is -1, the
            second one's -2, and so on.
        family: int [N], of each question (`PlanIndex.family`); None: every one is alone.

    Raises:
        InputError: a question has a media slot and no row.
    """
    if selection.ndim == 1 or len(selection) == 0:
        chosen = [*(questions[index] for index in selection.ravel()), *cards]
        card_numbers = -1 - np.arange(len(cards))
        numbers = np.concatenate([selection.ravel(), card_numbers])
        rows = np.concatenate([media_row[selection.ravel()], np.full(len(cards), -1)])
        own = selection.ravel() if family is None else family[selection.ravel()]
        families = np.concatenate([own, card_numbers])
        parts = [np.arange(len(chosen))] if sequence_tokens is None else _share_out(chosen, families, sequence_tokens)
        packs = [pack_questions([chosen[i] for i in part], numbers[part], rows[part], families[part]) for part in parts]
        return collate(packs, "packed" if selection.ndim == 1 else "rows", pad_id, pad_to_multiple)
    packs = [pack_row(questions[index], answer, index, int(media_row[index])) for index, answer in selection.tolist()]
    return collate(packs, "rows", pad_id, pad_to_multiple)


def _share_out(questions: Sequence[EncodedQuestion], family: np.ndarray, sequence_tokens: int) -> list[np.ndarray]:
    """Numbers of the questions of each sequence: families whole, in as many as cost least with their padding."""
    together = _group_families(family)
    sizes = np.array([_count_tokens([questions[i] for i in members]) for members in together], dtype=np.int64)
    order = np.argsort(-sizes, kind="stable")
    ways = []
    for n_sequences in range(1, max(1, -(-int(sizes.sum()) // sequence_tokens)) + 1):
        bins, loads = fill_evenly(order, sizes, n_sequences)
        length = max(loads, default=0)
        ways.append((n_sequences * length * (1 + length / _ATTENTION_TOKENS), n_sequences, bins))
    bins = min(ways)[2]
    nothing = np.zeros(0, dtype=np.int64)  # a rank without questions still steps
    return [np.concatenate([nothing, *(together[item] for item in sorted(items))]) for items in bins]


def _count_tokens(family: Sequence[EncodedQuestion]) -> int:
    shared = count_shared([question.prompt_ids for question in family]) if len(family) > 1 else 0
    return sum(len(question.tree.input_ids) for question in family) - shared * (len(family) - 1)
