"""A split as token ids in Ray's object store: what training reads again and again, and what planning needs of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data

from data_pipeline.batches.choices import AnswerChoices
from data_pipeline.batches.encoding import EncodedQuestion, encode_dialogue, encode_question, encode_texts
from data_pipeline.batches.families import find_families, hash_blocks
from data_pipeline.batches.steps import PlanIndex
from data_pipeline.errors import InputError
from data_pipeline.records.dialogue import ToolCall, parse_turn
from data_pipeline.records.schema import ASSISTANT, ToolRecord, Turn

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
    "n_asked",
    "prompt_blocks",
]


@dataclass(frozen=True)
class TokenizedQuestions:
    """A split as token ids in the object store, and what planning needs to know of it.

    Attributes:
        tables: refs to Arrow tables with prompt_ids list<int32>, answers list<list<int32>>, bears_loss
            list<list<bool>> (null but for dialogues), answer_tools list<int32> (of each answer, its number among
            `tool_ids`; null for dialogues), call_tools and call_starts list<int32> (of each call of a dialogue, its
            tool's number and how many tokens of the answer are before it); questions in corpus order.
        media_row: ref to int64 [N]; each question's row of the media matrix, -1 for text.
        media_matrix: ref to float [rows, E], of all media of the corpus.
        index: sizes of the N questions.
        loss_weight: float64 [N]; loss-bearing tokens of each question, its answers counted as separate rows.
        n_asked: int64 [N]; how often each question is compared with cards: once, a dialogue in front of each call.
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
    n_asked: np.ndarray
    is_dialogue: np.ndarray
    modalities: list[str]
    sources: list[str]
    n_too_long: int


def tokenize_questions(
    dataset: ray.data.Dataset,
    tokenizer: Any,
    media_rows: dict[str, int],
    media_matrix: np.ndarray,
    max_target_tokens: int,
    reserve_tokens: int,
    max_dialogue_tokens: int,
    tool_ids: Sequence[str],
    answer_ends: Sequence[int] = (),
    call_numbers: Mapping[str, int] | None = None,
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
        answer_ends: how many tokens of the answer that names each of them are kept, where those behind bear no loss;
            () = all.
        call_numbers: what dialogues call a tool -> its number among the cards; calls of others ask for no card.

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
            answer_ends,
            call_numbers or {},
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
    family, shared_tokens = find_families([row["prompt_blocks"] for row in kept])
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
            family=family,
            shared_tokens=shared_tokens,
        ),
        loss_weight=np.array([row["loss_tokens"] for row in kept], dtype=np.float64),
        n_asked=np.array([row["n_asked"] for row in kept], dtype=np.int64),
        is_dialogue=np.array([row["is_dialogue"] for row in kept], dtype=bool),
        modalities=[row["modality"] for row in kept],
        sources=[row["source"] for row in kept],
        n_too_long=len(rows) - len(kept),
    )


class QuestionTable:
    """Questions read from the tokenised Arrow table as they are asked for; a sequence of `EncodedQuestion`s."""

    def __init__(self, table: pa.Table, tool_choices: Sequence[AnswerChoices]) -> None:
        self._tool_choices = tool_choices
        self._answer_tools = table["answer_tools"].combine_chunks()
        self._prompts = table["prompt_ids"].combine_chunks()
        self._answers = table["answers"].combine_chunks()
        self._bears_loss = table["bears_loss"].combine_chunks()
        self._call_tools = table["call_tools"].combine_chunks()
        self._call_starts = table["call_starts"].combine_chunks()

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

    def tools_of(self, index: int) -> list[int]:
        """The right tools of a question by number; none of a dialogue."""
        tools = self._answer_tools[int(index)]
        return tools.values.to_pylist() if tools.is_valid else []

    def asks_of(self, index: int) -> list[tuple[int, list[int]]]:
        """Where a question is compared with cards: (tokens of its answer before that, right tools by number)."""
        calls = self._call_tools[int(index)].values.to_pylist()
        if calls:
            starts = self._call_starts[int(index)].values.to_pylist()
            return [(start, [tool]) for start, tool in zip(starts, calls, strict=True)]
        tools = self.tools_of(index)
        return [(0, tools)] if tools else []

    def _choices_of(self, index: int) -> list[AnswerChoices] | None:
        tools = self.tools_of(index)
        return [self._tool_choices[number] for number in tools] if self._tool_choices and tools else None


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
    call_numbers: Mapping[str, int],
) -> pa.Table:
    """The batch as token ids; a dialogue that is too long stays as a row without answers.

    `ends` says how many tokens of a tool's answer are kept; () = all.
    """
    questions: list[EncodedQuestion] = []
    answer_tools: list[list[int] | None] = []
    calls: list[list[tuple[int, int]]] = []
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
        is_asked = call_numbers and record.is_dialogue and question.answers
        calls.append(_list_calls(tokenizer, record.turns, call_numbers) if is_asked else [])
    masks = [question.bears_loss for question in questions]
    return pa.table(
        {
            "media_sha256": batch["media_sha256"],
            "modality": batch["modality"],
            "source": batch["source"],
            "prompt_ids": list_array([question.prompt_ids for question in questions], pa.int32()),
            "answers": pa.array([question.answers for question in questions], pa.list_(pa.list_(pa.int32()))),
            "bears_loss": pa.array(masks, pa.list_(pa.list_(pa.bool_()))),
            "answer_tools": pa.array(answer_tools, pa.list_(pa.int32())),
            "call_tools": pa.array([[tool for tool, _ in each] for each in calls], pa.list_(pa.int32())),
            "call_starts": pa.array([[start for _, start in each] for each in calls], pa.list_(pa.int32())),
            "n_asked": pa.array(
                [len(each) or int(bool(tools)) for each, tools in zip(calls, answer_tools, strict=True)], pa.int64()
            ),
            "is_dialogue": pa.array([tools is None for tools in answer_tools], pa.bool_()),
            "n_rows": pa.array([len(question.answers) for question in questions], pa.int64()),
            "prompt_tokens": pa.array([len(question.prompt_ids) for question in questions], pa.int64()),
            "answer_tokens": pa.array(
                [[len(answer) for answer in question.answers] for question in questions], pa.list_(pa.int64())
            ),
            "tree_tokens": pa.array([len(question.tree.input_ids) for question in questions], pa.int64()),
            "prompt_blocks": list_array([hash_blocks(question.prompt_ids) for question in questions], pa.int64()),
            "loss_tokens": pa.array([sum(question.n_loss_tokens) for question in questions], pa.int64()),
        }
    )


def _list_calls(tokenizer: Any, turns: Sequence[Turn], call_numbers: Mapping[str, int]) -> list[tuple[int, int]]:
    """(tool's number, tokens of the turns before) of each call of a tool that has a number."""
    calls, start = [], 0
    for turn, ids in zip(turns, encode_texts(tokenizer, [turn.text for turn in turns]), strict=True):
        call = parse_turn(turn.text) if turn.role == ASSISTANT else None
        if isinstance(call, ToolCall) and call.name in call_numbers:
            calls.append((call_numbers[call.name], start))
        start += len(ids)
    return calls


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


def list_array(arrays: list[np.ndarray], item_type: pa.DataType) -> pa.Array:
    """A list column made from whole arrays, without going through Python objects."""
    offsets = np.concatenate([[0], np.cumsum([len(array) for array in arrays])]).astype(np.int32)
    values = np.concatenate(arrays) if arrays else np.zeros(0)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, item_type))
