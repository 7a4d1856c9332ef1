"""The plan of a whole training: which rows every optimizer step takes, for `sampler=uniform`, and what all plans share.

`paper_sampler` has the other one. A plan is made of sizes alone; the stream reads the rows that it names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from data_pipeline.batches.packing import Layout
from data_pipeline.batches.steps import (
    PlanIndex,
    count_appearances,
    deal_step,
    deal_step_rows,
    plan_epoch,
    steps_per_epoch,
)
from data_pipeline.errors import InputError


class StepWeight(NamedTuple):
    """What the losses of an optimizer step are means over, all ranks and micro steps together.

    Attributes:
        tokens: loss-bearing answer tokens, as separate rows.
        answers: right answers of its tool questions.
        questions: its tool questions.
        asked: how often its questions and dialogues are compared with tool cards.
    """

    tokens: float
    answers: float
    questions: float
    asked: float


class TrainingPlan(Protocol):
    """Which rows every optimizer step of a training takes, and how they are dealt: a function of the arguments alone.

    Steps are counted over all epochs from 0. Any step can be asked for at any time, so a resumed run starts anywhere;
    what is in a step does not depend on the number of ranks.

    Attributes:
        averages_micro_batches: how the step's loss is formed. False: the summed loss of all its answer tokens, divided
            by their summed weight. True: the mean over its micro batches of each one's own mean, all of them weighing
            alike (MLLM-Tool's gradient accumulation); the loss weights of every micro batch are to be divided by
            their sum.
    """

    averages_micro_batches: bool

    def total_steps(self, epochs: int) -> int:
        """Optimizer steps of so many epochs."""
        ...

    def epoch_ends(self, epochs: int) -> list[int]:
        """For each epoch, the number of steps after which it is complete; the last is `total_steps`."""
        ...

    def micro_batches(self, step: int, rank: int, world_size: int) -> list[np.ndarray]:
        """This rank's micro steps of one step: selections for `build_micro_batch`, equally many on all ranks."""
        ...

    def step_weight(self, step: int) -> StepWeight:
        """What the step's summed losses over all ranks and micro steps are divided by."""
        ...

    def rows_seen(self, epochs: int) -> np.ndarray:
        """int64 [N]; (question, answer) rows of each question that the training draws."""
        ...


def count_seen(plan: TrainingPlan, index: PlanIndex, groups: Sequence[str], epochs: int) -> dict[str, float]:
    """How many times the rows of each group, such as a modality, are seen over the whole training, on average.

    Args:
        plan: of the training.
        index: sizes of all N questions.
        groups: [N], the group of each question.
        epochs: of the training.

    Returns:
        drawn rows / rows by group, groups in sorted order.
    """
    seen, labels = plan.rows_seen(epochs), np.asarray(groups)
    return {
        str(label): float(seen[labels == label].sum() / index.n_rows[labels == label].sum())
        for label in np.unique(labels)
    }


class UniformPlan:
    """Every question as often as `repeats` says in each epoch, shuffled over all modalities; `sampler=uniform`.

    The loss of a step is the mean over all its answer tokens.
    """

    averages_micro_batches = False

    def __init__(
        self,
        index: PlanIndex,
        loss_weight: np.ndarray,
        is_dialogue: np.ndarray,
        seed: int,
        global_batch_size: int,
        layout: Layout = "packed",
        pack_tokens: int = 2048,
        micro_batch_size: int = 4,
        repeats: np.ndarray | None = None,
        n_asked: np.ndarray | None = None,
    ) -> None:
        """
        Args:
            index: sizes of all N questions.
            loss_weight: float [N]; tokens of each question that bear loss, its answers counted as separate rows.
            is_dialogue: bool [N]; which questions are dialogues, that choose no tool under the catalogue.
            seed: of the run.
            global_batch_size: question-answer rows per optimizer step, over all ranks and micro steps.
            layout: how a step is dealt.
            pack_tokens: budget of one pack; layout "packed".
            micro_batch_size: rows of one micro step of a rank; layout "rows".
            repeats: float [N]; see `plan_epoch`. None: every question once an epoch.
            n_asked: int [N]; how often each question is compared with cards. None: each that is no dialogue once.

        Raises:
            InputError: for a batch size or repeats with which there is nothing to train on.
        """
        self._index, self._seed, self._global_batch_size = index, seed, global_batch_size
        self._loss_weight, self._is_selection = loss_weight, ~is_dialogue
        self._n_asked = self._is_selection if n_asked is None else n_asked
        self._layout, self._pack_tokens, self._micro_batch_size = layout, pack_tokens, micro_batch_size
        self._repeats = repeats
        self._steps_per_epoch = steps_per_epoch(index, global_batch_size, repeats)
        self._planned: tuple[int, list[np.ndarray]] = (-1, [])  # the epoch that was asked for last, and its steps

    def total_steps(self, epochs: int) -> int:
        return epochs * self._steps_per_epoch

    def epoch_ends(self, epochs: int) -> list[int]:
        return [(epoch + 1) * self._steps_per_epoch for epoch in range(epochs)]

    def micro_batches(self, step: int, rank: int, world_size: int) -> list[np.ndarray]:
        questions = self._questions_of(step)
        if self._layout == "rows":
            return deal_step_rows(questions, self._index, world_size, self._micro_batch_size)[rank]
        return deal_step(questions, self._index, world_size, self._pack_tokens)[rank]

    def step_weight(self, step: int) -> StepWeight:
        questions = self._questions_of(step)
        selection = questions[self._is_selection[questions]]
        return StepWeight(
            tokens=float(self._loss_weight[questions].sum()),
            answers=float(self._index.n_rows[selection].sum()),
            questions=float(len(selection)),
            asked=float(self._n_asked[questions].sum()),
        )

    def rows_seen(self, epochs: int) -> np.ndarray:
        times = np.zeros(len(self._index), dtype=np.int64)
        for epoch in range(epochs):
            times += count_appearances(len(self._index), self._repeats, self._seed, epoch)
        return times * self._index.n_rows

    def _questions_of(self, step: int) -> np.ndarray:
        epoch, number = divmod(step, self._steps_per_epoch)
        if self._planned[0] != epoch:
            steps = plan_epoch(self._index, self._seed, epoch, self._global_batch_size, self._repeats)
            self._planned = (epoch, steps)
        return self._planned[1][number]


def mixture_repeats(sources: Sequence[str], mixture: Mapping[str, float]) -> np.ndarray | None:
    """The weights of `train.mixture` as repeats of each question.

    Args:
        sources: [N], each question's source.
        mixture: source -> times an epoch; 1 where not named.

    Returns:
        float64 [N]; None where the mixture changes nothing.

    Raises:
        InputError: for a source that no question comes from.
    """
    known = sorted(set(sources))
    if strangers := sorted(set(mixture) - set(known)):
        raise InputError(
            f"train.mixture names {', '.join(strangers)}, but the training questions come from {', '.join(known)}; "
            "name those sources only."
        )
    if all(weight == 1 for weight in mixture.values()):
        return None
    return np.array([mixture.get(source, 1.0) for source in sources], dtype=np.float64)
