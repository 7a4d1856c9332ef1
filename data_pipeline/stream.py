"""Ray Data between corpus and training loop: tokenise a split once, then stream packed micro steps to each rank.

The tokenised split stays in Ray's object store as Arrow tables; a rank's stream reads the questions of its next steps
out of shared memory, lays them out and sends them ahead of the loop. What is in a step is fixed by (seed, epoch) alone,
so a stream can start at any step, at any world size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data

from data_pipeline.batch_plan import PlanIndex, plan_epoch, split_step, split_step_rows, steps_per_epoch
from data_pipeline.encoding import EncodedQuestion, encode_question
from data_pipeline.errors import InputError
from data_pipeline.packing import Layout, PackedBatch, build_micro_batch

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
    "question_index": pa.int32(),
    "media": pa.float32(),
}
TOKEN_GRIDS = ("input_ids", "position_ids", "subtree_end")  # [B, T]


@dataclass(frozen=True)
class TokenizedSplit:
    """A split as token ids in the object store, and what planning needs to know of it.

    Attributes:
        tables: Arrow tables with prompt_ids list<int32> and answers list<list<int32>>, questions in corpus order.
        media_row: ref to int64 [N]; each question's row of the media matrix, -1 for text.
        media_matrix: ref to float [M, E].
        plan_index: ref to the PlanIndex of N questions.
        loss_weight: ref to float64 [N]; answer tokens of each question as separate rows.
        n_questions: N.
        steps: optimizer steps of one epoch.
    """

    tables: list[Any]
    media_row: Any
    media_matrix: Any
    plan_index: Any
    loss_weight: Any
    n_questions: int
    steps: int


@dataclass(frozen=True)
class StepPlan:
    """How the split becomes steps. All ranks share it."""

    seed: int
    global_batch_size: int
    layout: Layout
    pack_tokens: int
    micro_batch_size: int
    pad_id: int
    pad_to_multiple: int


@dataclass(frozen=True)
class MicroStep:
    """One micro step of one rank.

    Attributes:
        step: optimizer step, counted over all epochs from 0.
        is_last: whether the optimizer steps after it.
        step_weight: summed loss weight of the whole step, over all ranks and micro steps.
        batch: its tokens; `batch.media_row` points into `media`.
        media: float32 [M, E].
    """

    step: int
    is_last: bool
    step_weight: float
    batch: PackedBatch
    media: np.ndarray


def tokenize_split(
    dataset: ray.data.Dataset,
    tokenizer: Any,
    media_rows: dict[str, int],
    media_matrix: np.ndarray,
    max_target_tokens: int,
    reserve_tokens: int,
    global_batch_size: int,
) -> TokenizedSplit:
    """Tokenise a split with Ray Data and keep it in the object store.

    Args:
        dataset: rows of CORPUS_SCHEMA whose media, if any, are all in `media_rows`.
        tokenizer: of the backbone.
        media_rows: media_sha256 -> row of `media_matrix`.
        media_matrix: float [M, E].
        max_target_tokens: see `encode_question`.
        reserve_tokens: see `encode_question`.
        global_batch_size: rows per optimizer step.

    Raises:
        InputError: if the split is empty.
    """
    keep_order(dataset.context)
    tokenize: Any = _tokenize_batch
    tokenized = dataset.map_batches(
        tokenize,
        fn_args=(tokenizer, max_target_tokens, reserve_tokens),
        batch_format="pyarrow",
        batch_size=512,
    ).materialize()
    tables: Any = tokenized.to_arrow_refs()
    answer_counts, sizes = [], []
    media_row: list[int] = []
    row_tokens: list[np.ndarray] = []
    loss_weight: list[int] = []
    for table in ray.get(tables):
        if table.num_rows == 0:  # of an empty dataset: it has no columns either
            continue
        for row in table.select(["prompt_tokens", "answer_tokens", "tree_tokens", "media_sha256"]).to_pylist():
            answer_counts.append(len(row["answer_tokens"]))
            sizes.append(row["tree_tokens"])
            row_tokens.append(np.array(row["answer_tokens"], dtype=np.int64) + row["prompt_tokens"])
            loss_weight.append(sum(row["answer_tokens"]))
            media_row.append(media_rows[row["media_sha256"]] if row["media_sha256"] else -1)
    if not sizes:
        raise InputError("the training split holds no usable question; see the corpus report for what was left out.")
    index = PlanIndex(
        n_rows=np.array(answer_counts, dtype=np.int64),
        n_tokens=np.array(sizes, dtype=np.int64),
        row_tokens=np.concatenate(row_tokens),
    )
    return TokenizedSplit(
        tables=tables,
        media_row=ray.put(np.array(media_row, dtype=np.int64)),
        media_matrix=ray.put(media_matrix),
        plan_index=ray.put(index),
        loss_weight=ray.put(np.array(loss_weight, dtype=np.float64)),
        n_questions=len(sizes),
        steps=steps_per_epoch(index, global_batch_size),
    )


def stream_micro_steps(
    split: TokenizedSplit, plan: StepPlan, rank: int, world_size: int, first_step: int, end_step: int
) -> Iterator[MicroStep]:
    """This rank's micro steps of the optimizer steps first_step .. end_step - 1, in order, made ahead by Ray Data.

    One stream runs through all epochs, so there is no gap between them.
    """
    n_steps = end_step - first_step
    if n_steps <= 0:
        return
    keep_order(ray.data.DataContext.get_current())
    dataset = ray.data.range(n_steps, override_num_blocks=-(-n_steps // STEPS_PER_BLOCK)).map_batches(
        MicroStepBuilder,
        fn_constructor_args=(split, plan, rank, world_size, first_step),
        batch_format="numpy",
        batch_size=STEPS_PER_BLOCK,
        compute=ray.data.ActorPoolStrategy(size=1),
        num_cpus=1,
        max_restarts=0,  # its arguments live as long as the job: if it dies, Train restarts the workers
    )
    blocks: Any = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2)
    for block in blocks:
        for row in range(block.num_rows):
            yield _read_micro_step(block, row)


class MicroStepBuilder:
    """Actor of a rank's stream: lays out the micro steps of given optimizer steps."""

    def __init__(self, split: TokenizedSplit, plan: StepPlan, rank: int, world_size: int, first_step: int) -> None:
        self._plan = plan
        self._rank, self._world_size = rank, world_size
        self._first_step = first_step
        self._steps_per_epoch = split.steps
        self._index, self._media_row, self._media_matrix, self._loss_weight = ray.get(
            [split.plan_index, split.media_row, split.media_matrix, split.loss_weight]
        )
        self._questions: Any = _QuestionTable(pa.concat_tables(ray.get(split.tables)))
        self._epoch = -1
        self._epoch_steps: list[np.ndarray] = []

    def __call__(self, batch: dict[str, np.ndarray]) -> pa.Table:
        rows = [row for number in batch["id"] for row in self._build_step(self._first_step + int(number))]
        columns: dict[str, pa.Array] = {
            "step": pa.array([row["step"] for row in rows], pa.int64()),
            "is_last": pa.array([row["is_last"] for row in rows], pa.bool_()),
            "step_weight": pa.array([row["step_weight"] for row in rows], pa.float64()),
            "n_rows": pa.array([row["n_rows"] for row in rows], pa.int64()),
        }
        for name, item_type in ARRAY_TYPES.items():
            columns[name] = _list_array([row[name] for row in rows], item_type)
        return pa.table(columns).replace_schema_metadata(
            {"layout": self._plan.layout, "embed_dim": str(self._media_matrix.shape[1])}
        )

    def _build_step(self, step: int) -> list[dict[str, Any]]:
        epoch, number = divmod(step, self._steps_per_epoch)
        plan = self._plan
        if epoch != self._epoch:
            self._epoch, self._epoch_steps = epoch, plan_epoch(self._index, plan.seed, epoch, plan.global_batch_size)
        questions = self._epoch_steps[number]
        if plan.layout == "packed":
            parts = split_step(questions, self._index, self._world_size, plan.pack_tokens)[self._rank]
        else:
            parts = split_step_rows(questions, self._index, self._world_size, plan.micro_batch_size)[self._rank]
        step_weight = float(self._loss_weight[questions].sum())
        rows = []
        for number_in_step, selection in enumerate(parts):
            micro = build_micro_batch(self._questions, selection, self._media_row, plan.pad_id, plan.pad_to_multiple)
            row: dict[str, Any] = {name: getattr(micro, name).ravel() for name in ARRAY_TYPES if name != "media"}
            row["media"] = self._media_matrix[micro.media_row].astype(np.float32).ravel()
            row |= {"step": step, "is_last": number_in_step == len(parts) - 1, "step_weight": step_weight}
            row["n_rows"] = micro.n_rows
            rows.append(row)
        return rows


class _QuestionTable:
    """Questions read from the tokenised Arrow table as they are asked for."""

    def __init__(self, table: pa.Table) -> None:
        self._prompts = table["prompt_ids"].combine_chunks()
        self._answers = table["answers"].combine_chunks()

    def __len__(self) -> int:
        return len(self._prompts)

    def __getitem__(self, index: int) -> EncodedQuestion:
        answers = self._answers[index].values
        return EncodedQuestion(
            np.asarray(self._prompts[index].values), [np.asarray(answers[n].values) for n in range(len(answers))]
        )


def keep_order(context: ray.data.DataContext) -> None:
    """Let Ray Data give blocks in the order in which they were asked for, not in which they became ready.

    Errors arrive as they were raised: its own wrapper loses the InputError inside on the way to the driver.

    Args:
        context: of a dataset; or the current one, which datasets copy when they are made.
    """
    context.execution_options.preserve_order = True
    context.raise_original_map_exception = True
    context.enable_progress_bars = False


def _tokenize_batch(batch: pa.Table, tokenizer: Any, max_target_tokens: int, reserve_tokens: int) -> pa.Table:
    questions = [
        encode_question(
            tokenizer,
            row["instruction"],
            row["modality"] != "text",
            row["valid_tool_ids"],
            max_target_tokens,
            reserve_tokens,
        )
        for row in batch.select(["instruction", "modality", "valid_tool_ids"]).to_pylist()
    ]
    return pa.table(
        {
            "media_sha256": batch["media_sha256"],
            "prompt_ids": _list_array([question.prompt_ids for question in questions], pa.int32()),
            "answers": pa.array([question.answers for question in questions], pa.list_(pa.list_(pa.int32()))),
            "prompt_tokens": pa.array([len(question.prompt_ids) for question in questions], pa.int64()),
            "answer_tokens": pa.array(
                [[len(answer) for answer in question.answers] for question in questions], pa.list_(pa.int64())
            ),
            "tree_tokens": pa.array([len(question.tree.input_ids) for question in questions], pa.int64()),
        }
    )


def _list_array(arrays: list[np.ndarray], item_type: pa.DataType) -> pa.Array:
    """A list column made from whole arrays, without going through Python objects."""
    offsets = np.concatenate([[0], np.cumsum([len(array) for array in arrays])]).astype(np.int32)
    values = np.concatenate(arrays) if arrays else np.zeros(0)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, item_type))


def _read_micro_step(block: pa.Table, row: int) -> MicroStep:
    metadata = block.schema.metadata or {}
    layout: Layout = "rows" if metadata[b"layout"] == b"rows" else "packed"
    arrays = {name: np.asarray(block[name][row].values) for name in ARRAY_TYPES}
    n_sequences = len(arrays["lengths"])
    for name in TOKEN_GRIDS:
        arrays[name] = arrays[name].reshape(n_sequences, -1)  # [B, T]
    media = arrays.pop("media").reshape(-1, int(metadata[b"embed_dim"]))  # [M, E]
    batch = PackedBatch(
        layout=layout,
        media_row=np.arange(len(media), dtype=np.int32),
        n_rows=block["n_rows"][row].as_py(),
        **arrays,
    )
    return MicroStep(
        step=block["step"][row].as_py(),
        is_last=block["is_last"][row].as_py(),
        step_weight=block["step_weight"][row].as_py(),
        batch=batch,
        media=media,
    )
