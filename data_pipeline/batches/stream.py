"""Ray Data between corpus and training loop: tokenise a split once, then stream packed micro steps to each rank.

The tokenised split stays in Ray's object store as Arrow tables; a rank's stream reads the questions of its next steps
out of shared memory, lays them out and sends them ahead of the loop. What is in a step is fixed by (seed, epoch) alone,
so a stream can start at any step, at any world size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data

from data_pipeline.batches.choices import AnswerChoices, ChoiceTerms
from data_pipeline.batches.encoding import EncodedQuestion, encode_dialogue, encode_question
from data_pipeline.batches.packing import Layout, PackedBatch, build_micro_batch
from data_pipeline.batches.plan import TrainingPlan
from data_pipeline.batches.steps import PlanIndex
from data_pipeline.errors import InputError
from data_pipeline.records.schema import ToolRecord

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
FACTS = [
    "media_sha256",
    "modality",
    "source",
    "is_dialogue",
    "n_rows",
    "prompt_tokens",
    "answer_tokens",
    "tree_tokens",
    "loss_tokens",
]
TOKEN_GRIDS = ("input_ids", "position_ids", "subtree_end")  # [B, T]


@dataclass(frozen=True)
class TokenizedQuestions:
    """A split as token ids in the object store, and what planning needs to know of it.

    Attributes:
        tables: refs to Arrow tables with prompt_ids list<int32>, answers list<list<int32>>, bears_loss
            list<list<bool>> (null but for dialogues) and answer_tools list<int32> (of each answer, its number among
            `tool_ids`); questions in corpus order.
        media_row: ref to int64 [N]; each question's row of the media matrix, -1 for text.
        media_matrix: ref to float [rows, E], of all media of the corpus.
        index: sizes of the N questions.
        loss_weight: float64 [N]; loss-bearing tokens of each question, its answers counted as separate rows.
        is_dialogue: bool [N].
        modalities: of each question.
        sources: of each question.
        n_too_long: dialogues that were left out.
    """

    tables: list[Any]
    media_row: Any
    media_matrix: Any
    index: PlanIndex
    loss_weight: np.ndarray
    is_dialogue: np.ndarray
    modalities: list[str]
    sources: list[str]
    n_too_long: int


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
    """

    layout: Layout
    pad_id: int = 0
    pad_to_multiple: int = 1
    sequence_tokens: int | None = None
    tool_choices: tuple[AnswerChoices, ...] = ()
    token_weight: float = 1.0
    answer_weight: float = 0.0
    set_weight: float = 0.0


@dataclass(frozen=True)
class MicroStep:
    """One micro step of one rank.

    Attributes:
        step: optimizer step, counted over all epochs from 0.
        is_last: whether the optimizer steps after it.
        step_weight: what the step's summed loss over all ranks and micro steps is to be divided by.
        batch: its tokens.
        media: float32 [M, E], the vectors of its media slots, in their order.
    """

    step: int
    is_last: bool
    step_weight: float
    batch: PackedBatch
    media: np.ndarray


def tokenize_questions(
    dataset: ray.data.Dataset,
    tokenizer: Any,
    media_rows: dict[str, int],
    media_matrix: np.ndarray,
    max_target_tokens: int,
    reserve_tokens: int,
    max_dialogue_tokens: int,
    tool_ids: Sequence[str],
    tool_choices: Sequence[AnswerChoices] = (),
) -> TokenizedQuestions:
    """Tokenise a split with Ray Data and keep it in the object store.

    Args:
        dataset: rows of CORPUS_SCHEMA whose media, if any, are all in `media_rows`.
        tokenizer: of the backbone.
        media_rows: media_sha256 -> row of `media_matrix`.
        media_matrix: float [rows, E].
        max_target_tokens: see `encode_question`.
        reserve_tokens: see `encode_question`.
        max_dialogue_tokens: longer dialogues are left out.
        tool_ids: every tool that a question may be answered with.
        tool_choices: of each of them, where answers are to end with their last decision because no other token bears
            loss; () = answers are whole.

    Raises:
        InputError: if nothing is left, or a question is answered with another tool.
    """
    keep_order(dataset.context)
    tokenize: Any = _tokenize_batch
    tokenized = dataset.map_batches(
        tokenize,
        fn_args=(
            tokenizer,
            max_target_tokens,
            reserve_tokens,
            max_dialogue_tokens,
            {tool_id: number for number, tool_id in enumerate(tool_ids)},
            [int(choices.depth.max(initial=0)) + 1 for choices in tool_choices],
        ),
        batch_format="pyarrow",
        batch_size=512,
    ).materialize()
    tables: Any = tokenized.to_arrow_refs()
    # an empty dataset gives tables without columns
    rows = [row for table in ray.get(tables) if table.num_rows for row in table.select(FACTS).to_pylist()]
    kept = [row for row in rows if row["n_rows"]]
    if not kept:
        raise InputError("the training split holds no usable question; see the corpus report for what was left out.")
    row_tokens = [np.array(row["answer_tokens"], dtype=np.int64) + row["prompt_tokens"] for row in kept]
    return TokenizedQuestions(
        tables=[_drop_empty.remote(table) for table in tables] if len(kept) < len(rows) else tables,
        media_row=ray.put(
            np.array([media_rows[row["media_sha256"]] if row["media_sha256"] else -1 for row in kept], dtype=np.int64)
        ),
        media_matrix=ray.put(media_matrix),
        index=PlanIndex(
            n_rows=np.array([row["n_rows"] for row in kept], dtype=np.int64),
            n_tokens=np.array([row["tree_tokens"] for row in kept], dtype=np.int64),
            row_tokens=np.concatenate(row_tokens),
        ),
        loss_weight=np.array([row["loss_tokens"] for row in kept], dtype=np.float64),
        is_dialogue=np.array([row["is_dialogue"] for row in kept], dtype=bool),
        modalities=[row["modality"] for row in kept],
        sources=[row["source"] for row in kept],
        n_too_long=len(rows) - len(kept),
    )


def stream_micro_steps(
    split: TokenizedQuestions,
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
    keep_order(ray.data.DataContext.get_current())
    dataset = ray.data.range(n_steps, override_num_blocks=-(-n_steps // STEPS_PER_BLOCK)).map_batches(
        MicroStepBuilder,
        fn_constructor_args=(split, [plan], form, rank, world_size, first_step),
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

    def __init__(
        self,
        split: TokenizedQuestions,
        plan: list[ray.ObjectRef[TrainingPlan]],
        form: BatchForm,
        rank: int,
        world_size: int,
        first_step: int,
    ) -> None:
        self._form = form
        self._rank, self._world_size = rank, world_size
        self._first_step = first_step
        found: list[Any] = ray.get([split.media_row, split.media_matrix, *plan])
        self._media_row, self._media_matrix = found[:2]
        self._plan: TrainingPlan = found[2]
        self._questions: Any = _QuestionTable(pa.concat_tables(ray.get(split.tables)), form.tool_choices)

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
        for name, item_type in CHOICE_TYPES.items():
            columns[f"choice_{name}"] = _list_array([row["choices"][name] for row in rows], item_type)
        return pa.table(columns).replace_schema_metadata(
            {"layout": self._form.layout, "embed_dim": str(self._media_matrix.shape[1])}
        )

    def _build_step(self, step: int) -> list[dict[str, Any]]:
        parts = self._plan.micro_batches(step, self._rank, self._world_size)
        weight, form = self._plan.step_weight(step), self._form
        rows = []
        for number_in_step, selection in enumerate(parts):
            micro = build_micro_batch(
                self._questions,
                selection,
                self._media_row,
                form.pad_id,
                form.pad_to_multiple,
                form.sequence_tokens,
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
            row["media"] = self._media_matrix[micro.media_row].astype(np.float32).ravel()
            row |= {"step": step, "is_last": number_in_step == len(parts) - 1, "step_weight": weight.tokens}
            row["n_rows"] = micro.n_rows
            rows.append(row)
        return rows


class _QuestionTable:
    """Questions read from the tokenised Arrow table as they are asked for."""

    def __init__(self, table: pa.Table, tool_choices: Sequence[AnswerChoices]) -> None:
        self._tool_choices = tool_choices
        self._answer_tools = table["answer_tools"].combine_chunks()
        self._prompts = table["prompt_ids"].combine_chunks()
        self._answers = table["answers"].combine_chunks()
        self._bears_loss = table["bears_loss"].combine_chunks()

    def __len__(self) -> int:
        return len(self._prompts)

    def __getitem__(self, index: int) -> EncodedQuestion:
        bears_loss = self._bears_loss[index]
        return EncodedQuestion(
            np.asarray(self._prompts[index].values),
            _inner_arrays(self._answers[index]),
            _inner_arrays(bears_loss) if bears_loss.is_valid else None,
            self._choices_of(index),
        )

    def _choices_of(self, index: int) -> list[AnswerChoices] | None:
        tools = self._answer_tools[index]
        if not self._tool_choices or not tools.is_valid:
            return None
        return [self._tool_choices[number] for number in tools.values.to_pylist()]


def _inner_arrays(lists: Any) -> list[np.ndarray]:
    values = lists.values
    return [values[n].values.to_numpy(zero_copy_only=False) for n in range(len(values))]


def keep_order(context: ray.data.DataContext) -> None:
    """Let Ray Data give blocks in the order in which they were asked for, not in which they became ready.

    Errors arrive as they were raised: its own wrapper loses the InputError inside on the way to the driver.

    Args:
        context: of a dataset; or the current one, which datasets copy when they are made.
    """
    context.execution_options.preserve_order = True
    context.raise_original_map_exception = True
    context.enable_progress_bars = False


def _tokenize_batch(
    batch: pa.Table,
    tokenizer: Any,
    max_target_tokens: int,
    reserve_tokens: int,
    max_dialogue_tokens: int,
    tool_numbers: Mapping[str, int],
    ends: Sequence[int],
) -> pa.Table:
    """The batch as token ids; a dialogue that is too long stays as a row without answers.

    `ends` says how many tokens of a tool's answer are kept; () = all.
    """
    questions: list[EncodedQuestion] = []
    answer_tools: list[list[int] | None] = []
    for row in batch.to_pylist():
        record = ToolRecord.from_row(row)
        tools = None if record.is_dialogue else _number_tools(record, tool_numbers)
        answer_tools.append(tools)
        if record.is_dialogue:
            question = encode_dialogue(tokenizer, record.instruction, record.turns)
            if len(question.prompt_ids) + len(question.answers[0]) > max_dialogue_tokens:
                question = EncodedQuestion(question.prompt_ids, [])
        else:
            question = encode_question(
                tokenizer,
                record.instruction,
                record.has_media,
                record.valid_tool_ids,
                max_target_tokens,
                reserve_tokens,
            )
        if tools is not None and ends:
            kept = [answer[: ends[tool]] for answer, tool in zip(question.answers, tools, strict=True)]
            question = EncodedQuestion(question.prompt_ids, kept)
        questions.append(question)
    masks = [question.bears_loss for question in questions]
    return pa.table(
        {
            "media_sha256": batch["media_sha256"],
            "modality": batch["modality"],
            "source": batch["source"],
            "prompt_ids": _list_array([question.prompt_ids for question in questions], pa.int32()),
            "answers": pa.array([question.answers for question in questions], pa.list_(pa.list_(pa.int32()))),
            "bears_loss": pa.array(masks, pa.list_(pa.list_(pa.bool_()))),
            "answer_tools": pa.array(answer_tools, pa.list_(pa.int32())),
            "is_dialogue": pa.array([tools is None for tools in answer_tools], pa.bool_()),
            "n_rows": pa.array([len(question.answers) for question in questions], pa.int64()),
            "prompt_tokens": pa.array([len(question.prompt_ids) for question in questions], pa.int64()),
            "answer_tokens": pa.array(
                [[len(answer) for answer in question.answers] for question in questions], pa.list_(pa.int64())
            ),
            "tree_tokens": pa.array([len(question.tree.input_ids) for question in questions], pa.int64()),
            "loss_tokens": pa.array([sum(question.n_loss_tokens) for question in questions], pa.int64()),
        }
    )


def _number_tools(record: ToolRecord, tool_numbers: Mapping[str, int]) -> list[int]:
    strangers = [tool_id for tool_id in record.valid_tool_ids if tool_id not in tool_numbers]
    if strangers:
        raise InputError(
            f"record {record.record_id!r} is answered with {strangers[0]!r}, which is no tool that a question may be "
            "answered with: one with a name of its own is for dialogues only; leave its `name` out of the catalogue."
        )
    return [tool_numbers[tool_id] for tool_id in record.valid_tool_ids]


@ray.remote
def _drop_empty(table: pa.Table) -> pa.Table:
    return table.filter(pc.field("n_rows") > 0)


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
    choices = {name: np.asarray(block[f"choice_{name}"][row].values) for name in CHOICE_TYPES}
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
        media=media,
    )
