"""MLLM-Tool's batch sampler: micro batches of one modality each, in rotation, small sets over-sampled; `sampler=paper`.

Reference: the batch sampler of MLLM-Tool's released code. Micro step t of an epoch takes a full batch of modality t mod
n; every modality's rows are shuffled and cut into full batches (the tail is dropped), and shuffled anew when they are
used up. An epoch is as long as the largest modality needs, and begins with a new shuffle of each.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data_pipeline.batches.plan import StepWeight
from data_pipeline.batches.steps import PlanIndex
from data_pipeline.errors import InputError
from data_pipeline.records.schema import Modality

ROTATION = (Modality.AUDIO, Modality.VIDEO, Modality.IMAGE, Modality.TEXT)


class PaperPlan:
    """A `TrainingPlan` of (question, answer) rows, for the layout "rows".

    One micro step of the rotation is `micro_batch_size * workers` rows of one modality, of which worker r takes the
    r-th `micro_batch_size`: these parts are the step's micro batches, and the loss is the mean of their means.
    `workers` is a number of the config, not of the ranks that happen to be there, so what a step holds, and how it is
    averaged, is the same at any world size.

    Attributes:
        modalities: those that have rows, in the order of the rotation.
        micro_steps_per_epoch: of the rotation.
        accumulation: micro steps of the rotation in one optimizer step.
        full_batches: of each modality in one pass through its rows.
        dropped_rows: of each modality in one pass: the tail that fills no batch.
    """

    averages_micro_batches = True

    def __init__(
        self,
        index: PlanIndex,
        modalities: Sequence[Modality | str],
        seed: int,
        global_batch_size: int,
        micro_batch_size: int,
        workers: int,
    ) -> None:
        """
        Args:
            index: sizes of all N questions.
            modalities: [N], each question's modality.
            seed: of the run.
            global_batch_size: rows per optimizer step, over all workers and micro steps.
            micro_batch_size: rows of one worker's micro batch.
            workers: of the config.

        Raises:
            InputError: if the batch sizes do not divide, or a modality has fewer rows than one micro step takes.
        """
        rows_per_micro_step = micro_batch_size * workers
        if global_batch_size < 1 or global_batch_size % rows_per_micro_step:
            raise InputError(
                f"train.global_batch_size is {global_batch_size}, which train.micro_batch_size x train.workers = "
                f"{micro_batch_size} x {workers} = {rows_per_micro_step} does not divide; sampler=paper needs whole "
                "micro steps, so change one of the three."
            )
        self._seed, self._n_questions = seed, len(index)
        self._batch_rows, self._part_rows = rows_per_micro_step, micro_batch_size
        pairs = _list_rows(index)
        labels = np.repeat(np.array([Modality(modality).value for modality in modalities]), index.n_rows)
        rows = {modality: pairs[labels == modality.value] for modality in ROTATION}
        self.modalities = tuple(modality for modality in ROTATION if len(rows[modality]))
        self._rows = [rows[modality] for modality in self.modalities]
        for modality, own in zip(self.modalities, self._rows, strict=True):
            if len(own) < rows_per_micro_step:
                raise InputError(
                    f"there are {len(own)} rows of modality {modality.value}, fewer than the {rows_per_micro_step} of "
                    "one micro step over all workers, and sampler=paper takes full batches only; lower "
                    "train.micro_batch_size or train.workers, or set train.sampler=uniform."
                )
        if not self._rows:
            raise InputError("there are no training rows; see the corpus report for what was left out.")
        largest = max(len(own) for own in self._rows)
        self.accumulation = global_batch_size // rows_per_micro_step
        self.micro_steps_per_epoch = len(self._rows) * -(-largest // rows_per_micro_step)
        self.full_batches = [len(own) // rows_per_micro_step for own in self._rows]
        self.dropped_rows = [len(own) % rows_per_micro_step for own in self._rows]
        self._shuffled: dict[
            int, tuple[tuple[int, int], np.ndarray]
        ] = {}  # modality -> its last (epoch, pass), and order

    def total_steps(self, epochs: int) -> int:
        steps = epochs * self.micro_steps_per_epoch // self.accumulation
        if steps == 0:
            raise InputError(
                f"{epochs} epoch(s) of {self.micro_steps_per_epoch} micro steps do not fill one optimizer step of "
                f"{self.accumulation}; lower train.global_batch_size or raise train.epochs."
            )
        return steps

    def epoch_ends(self, epochs: int) -> list[int]:
        """See `TrainingPlan`. A step that spans the end of an epoch belongs to the next: accumulation goes on."""
        return [(epoch + 1) * self.micro_steps_per_epoch // self.accumulation for epoch in range(epochs)]

    def micro_step_rows(self, micro_step: int) -> tuple[Modality, np.ndarray]:
        """Modality and rows, pairs int64 [B, 2] of question index and answer number, of one micro step of the rotation.

        Args:
            micro_step: counted over all epochs from 0.
        """
        epoch, turn = divmod(micro_step, self.micro_steps_per_epoch)
        draw, number = divmod(turn, len(self._rows))  # the draw-th batch of modality `number` in this epoch
        pass_number, batch = divmod(draw, self.full_batches[number])
        order = self._shuffle(epoch, number, pass_number)
        rows = self._rows[number][order[batch * self._batch_rows : (batch + 1) * self._batch_rows]]  # [B, 2]
        return self.modalities[number], rows

    def micro_batches(self, step: int, rank: int, world_size: int) -> list[np.ndarray]:
        """See `TrainingPlan`. At the config's number of workers, rank r gets the r-th part of every micro step."""
        micro_steps = range(step * self.accumulation, (step + 1) * self.accumulation)
        rows = np.concatenate([self.micro_step_rows(micro_step)[1] for micro_step in micro_steps])  # [step's rows, 2]
        parts = np.split(rows, range(self._part_rows, len(rows), self._part_rows))
        parts += [rows[:0]] * (-len(parts) % world_size)  # idle ranks of the last micro step
        return parts[rank::world_size]

    def step_weight(self, step: int) -> StepWeight:
        """The step's number of micro batches: each weighs 1, because the loop averages them. For the papers' loss."""
        return StepWeight(float(self.accumulation * self._batch_rows // self._part_rows), 0.0, 0.0, 0.0)

    def rows_seen(self, epochs: int) -> np.ndarray:
        seen = np.zeros(self._n_questions, dtype=np.int64)
        micro_steps = self.total_steps(epochs) * self.accumulation
        for epoch in range(epochs):
            turns = min(self.micro_steps_per_epoch, micro_steps - epoch * self.micro_steps_per_epoch)
            for number, rows in enumerate(self._rows):
                draws = -(-(turns - number) // len(self._rows))  # batches of this modality in this epoch
                for pass_number in range(-(-draws // self.full_batches[number])):
                    batches = min(self.full_batches[number], draws - pass_number * self.full_batches[number])
                    order = self._shuffle(epoch, number, pass_number)[: batches * self._batch_rows]
                    seen += np.bincount(rows[order, 0], minlength=self._n_questions)
        return seen

    def _shuffle(self, epoch: int, number: int, pass_number: int) -> np.ndarray:
        """The order of a modality's rows in one pass, int64 [rows], drawn from its own generator."""
        key = (epoch, pass_number)
        if number not in self._shuffled or self._shuffled[number][0] != key:
            place = ROTATION.index(self.modalities[number])
            order = np.random.default_rng([self._seed, epoch, place, pass_number]).permutation(len(self._rows[number]))
            self._shuffled[number] = (key, order)
        return self._shuffled[number][1]


def _list_rows(index: PlanIndex) -> np.ndarray:
    """Every (question, answer) row as int64 [rows, 2], question by question."""
    first = np.cumsum(index.n_rows) - index.n_rows
    question = np.repeat(np.arange(len(index)), index.n_rows)
    return np.stack([question, np.arange(index.total_rows) - first[question]], axis=1)
