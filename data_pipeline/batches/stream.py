"""Ray Data between tokens and training loop: packed micro steps, streamed to each rank.

The tokenised split lies in storage (`token_shards`); a rank's stream reads the questions of its next steps there, lays
them out and sends them ahead of the loop. What is in a step is fixed by (seed, epoch) alone, so a stream can start at
any step, at any world size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data

from data_pipeline.batches.blocks import keep_order, list_array
from data_pipeline.batches.cards import CardForm, RetrievalTerms, as_question
from data_pipeline.batches.choices import AnswerChoices, ChoiceTerms
from data_pipeline.batches.packing import Layout, PackedBatch, build_micro_batch
from data_pipeline.batches.plan import TrainingPlan
from data_pipeline.batches.question_table import QuestionTable
from data_pipeline.batches.tokenized import StoredQuestions
from data_pipeline.batches.vector_table import VectorTable
from data_pipeline.batches.waiting import iterate_within

CPUS = 2  # of one rank's stream: one for the actor, one for the numbers of its steps
STEPS_PER_BLOCK = 8  # steps that one Ray Data block carries; a few blocks are on their way at any time
ARRAY_TYPES = {
    "input_ids": pa.int32(),
    "position_ids": pa.int32(),
    "subtree_end": pa.int32(),
    "lengths": pa.int32(),
    "loss_position": pa.int32(),
    "loss_target": pa.int32(),
    "loss_weight": pa.float32(),
    "media_position": pa.int32(),
    "media_row": pa.int32(),
    "question_index": pa.int32(),
    "prompt_end": pa.int32(),
    "media": pa.float32(),
}
CHOICE_TYPES = {
    "position": pa.int32(),
    "children": pa.int32(),
    "taken": pa.int32(),
    "answer": pa.int32(),
    "question": pa.int32(),
    "answer_weight": pa.float32(),
    "set_weight": pa.float32(),
}
RETRIEVAL_TYPES = {"question": pa.int32(), "card": pa.int32(), "is_right": pa.uint8(), "weight": pa.float32()}
TOKEN_GRIDS = ("input_ids", "position_ids", "subtree_end")  # [B, T]


@dataclass(frozen=True)
class BatchForm:
    """How a micro step becomes arrays.

    Attributes:
        layout, pad_id, pad_to_multiple, sequence_tokens: see `data_pipeline.batches.packing`.
        tool_choices: what the answer that names a tool decides under the catalogue's trie, in the order of the
            `tool_ids` with which the split was tokenised; () where no loss is under the trie.
        token_weight: of the mean cross entropy of the answer tokens, the papers' loss.
        answer_weight: of the mean of -log p(answer) over the right answers; see `model.llm.choice_loss`.
        set_weight: of the mean of -log p(any right answer) over the questions; layout "packed" only.
        cards: what the retriever learns from, layout "packed" only; None where it does not learn.
        retrieval_weight: of its loss, a mean over all that ask for cards; see `model.llm.retrieval_loss`.
    """

    layout: Layout
    pad_id: int = 0
    pad_to_multiple: int = 1
    sequence_tokens: int | None = None
    tool_choices: tuple[AnswerChoices, ...] = ()
    token_weight: float = 1.0
    answer_weight: float = 0.0
    set_weight: float = 0.0
    cards: CardForm | None = None
    retrieval_weight: float = 0.0


@dataclass(frozen=True)
class MicroStep:
    """One micro step of one rank.

    Attributes:
        step: optimizer step, counted over all epochs from 0.
        is_last: whether the optimizer steps after it.
        step_weight: what the step's summed loss over all ranks and micro steps is to be divided by.
        batch: its tokens.
        retrieval: what its questions are to be nearest to.
        media: float32 [M, E], the vectors of its media slots, in their order.
    """

    step: int
    is_last: bool
    step_weight: float
    batch: PackedBatch
    retrieval: RetrievalTerms
    media: np.ndarray


def stream_micro_steps(
    questions: StoredQuestions,
    plan: ray.ObjectRef[TrainingPlan],
    form: BatchForm,
    rank: int,
    world_size: int,
    first_step: int,
    end_step: int,
) -> Iterator[MicroStep]:
    """This rank's micro steps of the optimizer steps first_step .. end_step - 1, in order, made ahead by Ray Data.

    One stream runs through all epochs, so there is no gap between them. The plan is a reference: all ranks share it.
    """
    n_steps = end_step - first_step
    if n_steps <= 0:
        return
    keep_order(ray.data.DataContext.get_current(), CPUS)
    dataset = ray.data.range(n_steps, override_num_blocks=-(-n_steps // STEPS_PER_BLOCK)).map_batches(
        MicroStepBuilder,
        fn_constructor_args=(questions, [plan], form, rank, world_size, first_step),
        batch_format="numpy",
        batch_size=STEPS_PER_BLOCK,
        compute=ray.data.ActorPoolStrategy(size=1),
        num_cpus=1,
        max_restarts=0,  # its arguments live as long as the job: if it dies, Train restarts the workers
    )
    blocks: Any = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2)
    for block in iterate_within(iter(blocks)):
        for row in range(block.num_rows):
            yield _read_micro_step(block, row)


class MicroStepBuilder:
    """Actor of a rank's stream: lays out the micro steps of given optimizer steps."""

    def __init__(
        self,
        questions: StoredQuestions,
        plan: list[ray.ObjectRef[TrainingPlan]],
        form: BatchForm,
        rank: int,
        world_size: int,
        first_step: int,
    ) -> None:
        self._form = form
        self._rank, self._world_size = rank, world_size
        self._first_step = first_step
        found: list[Any] = ray.get([questions.rows, questions.media_row, questions.family, *plan])
        rows, self._media_row, self._family = found[:3]
        self._plan: TrainingPlan = found[3]
        self._vectors = VectorTable(questions.vectors)
        self._questions: Any = QuestionTable(questions.shards, rows, form.tool_choices)

    def __call__(self, batch: dict[str, np.ndarray]) -> pa.Table:
        rows = [row for number in batch["id"] for row in self._build_step(self._first_step + int(number))]
        columns: dict[str, pa.Array] = {
            "step": pa.array([row["step"] for row in rows], pa.int64()),
            "is_last": pa.array([row["is_last"] for row in rows], pa.bool_()),
            "step_weight": pa.array([row["step_weight"] for row in rows], pa.float64()),
            "n_rows": pa.array([row["n_rows"] for row in rows], pa.int64()),
        }
        for name, item_type in ARRAY_TYPES.items():
            columns[name] = list_array([row[name] for row in rows], item_type)
        for kind, types in (("choices", CHOICE_TYPES), ("retrieval", RETRIEVAL_TYPES)):
            for name, item_type in types.items():
                columns[f"{kind}_{name}"] = list_array([row[kind][name].ravel() for row in rows], item_type)
        self._questions.release()
        self._vectors.release()
        return pa.table(columns).replace_schema_metadata(
            {"layout": self._form.layout, "embed_dim": str(self._vectors.file.embed_dim)}
        )

    def _build_step(self, step: int) -> list[dict[str, Any]]:
        parts = self._plan.micro_batches(step, self._rank, self._world_size)
        weight, form = self._plan.step_weight(step), self._form
        rows = []
        for number_in_step, selection in enumerate(parts):
            asks = [self._questions.asks_of(index) for index in selection.ravel()] if form.cards else []
            right = [tools for each in asks for _, tools in each]
            drawn = form.cards.draw(right, step, self._rank, number_in_step) if form.cards else []
            micro = build_micro_batch(
                self._questions,
                selection,
                self._media_row,
                form.pad_id,
                form.pad_to_multiple,
                form.sequence_tokens,
                [as_question(tokens) for _, tokens in drawn],
                self._family,
            )
            row: dict[str, Any] = {name: getattr(micro, name).ravel() for name in ARRAY_TYPES if name != "media"}
            if self._plan.averages_micro_batches:
                row["loss_weight"] = row["loss_weight"] / max(row["loss_weight"].sum(), 1.0)
            if form.token_weight:
                row["loss_weight"] = row["loss_weight"] * form.token_weight
            else:
                row |= {name: row[name][:0] for name in ("loss_position", "loss_target", "loss_weight")}
            choices = row["choices"] = {name: values.ravel() for name, values in vars(micro.choices).items()}
            # all losses are divided by the tokens in the end, so what is a mean over other things is multiplied by them
            choices["answer_weight"] = choices["answer_weight"] * (
                form.answer_weight * weight.tokens / max(weight.answers, 1.0)
            )
            choices["set_weight"] = choices["set_weight"] * (
                form.set_weight * weight.tokens / max(weight.questions, 1.0)
            )
            row["retrieval"] = vars(
                self._list_retrieval(
                    micro,
                    [tool for tool, _ in drawn],
                    form.retrieval_weight * weight.tokens / max(weight.asked, 1.0),
                )
            )
            row["media"] = self._vectors.take(micro.media_row).ravel()
            row |= {"step": step, "is_last": number_in_step == len(parts) - 1, "step_weight": weight.tokens}
            row["n_rows"] = micro.n_rows
            rows.append(row)
        return rows

    def _list_retrieval(self, micro: PackedBatch, cards: list[int], weight: float) -> RetrievalTerms:
        """Which of the cards laid beside the questions, by their tools, are right wherever one is asked for."""
        if not cards:
            return RetrievalTerms.empty()
        is_card = micro.question_index < 0
        at_hand = np.array(cards)[-1 - micro.question_index[is_card]]  # [K]
        asked = [
            (end + start, tools)  # a dialogue's turns follow its prompt in a chain
            for index, end in zip(micro.question_index[~is_card], micro.prompt_end[~is_card], strict=True)
            for start, tools in self._questions.asks_of(index)
        ]
        return RetrievalTerms(
            question=np.array([end for end, _ in asked], dtype=np.int32),
            card=micro.prompt_end[is_card],
            is_right=np.array([np.isin(at_hand, tools) for _, tools in asked]).astype(np.uint8),
            weight=np.full(len(asked), weight, dtype=np.float32),
        )


def _read_micro_step(block: pa.Table, row: int) -> MicroStep:
    metadata = block.schema.metadata or {}
    layout: Layout = "rows" if metadata[b"layout"] == b"rows" else "packed"
    arrays = {name: np.asarray(block[name][row].values) for name in ARRAY_TYPES}
    n_sequences = len(arrays["lengths"])
    for name in TOKEN_GRIDS:
        arrays[name] = arrays[name].reshape(n_sequences, -1)  # [B, T]
    media = arrays.pop("media").reshape(-1, int(metadata[b"embed_dim"]))  # [M, E]
    choices = {name: np.asarray(block[f"choices_{name}"][row].values) for name in CHOICE_TYPES}
    retrieval = {name: np.asarray(block[f"retrieval_{name}"][row].values) for name in RETRIEVAL_TYPES}
    retrieval["is_right"] = retrieval["is_right"].reshape(len(retrieval["question"]), len(retrieval["card"]))  # [Q, K]
    choices["children"] = choices["children"].reshape(max(1, len(choices["position"])), -1)  # [C, W]
    batch = PackedBatch(
        layout=layout,
        n_rows=block["n_rows"][row].as_py(),
        choices=ChoiceTerms(**choices),
        **arrays,
    )
    return MicroStep(
        step=block["step"][row].as_py(),
        is_last=block["is_last"][row].as_py(),
        step_weight=block["step_weight"][row].as_py(),
        batch=batch,
        retrieval=RetrievalTerms(**retrieval),
        media=media,
    )
