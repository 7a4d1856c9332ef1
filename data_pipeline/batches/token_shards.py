"""A split as token ids in storage: Ray Data tokenises it once, in parallel, and whoever needs the same finds it there.

    <tokens>/<key>/tokens.json                its parts, in the order of the corpus
    <tokens>/<key>/questions-00000.arrow      token ids, which ranks map into their memory (`question_table`)
    <tokens>/<key>/facts-00000.parquet        sizes of the same questions: all that planning reads (`tokenized`)

The key is a hash of all that the tokens depend on: the rows, the form below, and the code that makes tokens. So another
training of the same corpus, and every trial of a sweep, tokenises nothing; the folder can be deleted at any time.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data

from data_pipeline import storage
from data_pipeline.batches.blocks import keep_order, list_array
from data_pipeline.batches.encoding import EncodedQuestion, encode_dialogue, encode_question, encode_texts
from data_pipeline.batches.families import hash_blocks
from data_pipeline.errors import InputError
from data_pipeline.locations import Location, filesystem_of, locate
from data_pipeline.records.dialogue import ToolCall, parse_turn
from data_pipeline.records.schema import ASSISTANT, ToolRecord, Turn

MANIFEST_FILE = "tokens.json"
MIN_PART_ROWS = 1_000  # about a second of work: less is not worth the start of a task
MAX_PARTS_OF_A_SPLIT = 64  # where its shards are not more: enough to keep a cluster's CPUs busy, few enough to open
_BATCH_ROWS = 512  # held as Python objects at a time
_PACKAGE = Path(__file__).resolve().parent.parent

QUESTION_SCHEMA = pa.schema(
    [
        ("prompt_ids", pa.list_(pa.int32())),
        ("answers", pa.list_(pa.list_(pa.int32()))),
        ("bears_loss", pa.list_(pa.list_(pa.bool_()))),  # null but for dialogues
        ("answer_tools", pa.list_(pa.int32())),  # of each answer, its number among `tool_ids`; null for dialogues
        ("call_tools", pa.list_(pa.int32())),  # of each call of a dialogue, its tool's number among the cards
        ("call_starts", pa.list_(pa.int32())),  # and how many tokens of the answer are before it
    ]
)
FACT_SCHEMA = pa.schema(
    [
        ("media_sha256", pa.string()),
        ("modality", pa.dictionary(pa.int32(), pa.string())),
        ("source", pa.dictionary(pa.int32(), pa.string())),
        ("is_dialogue", pa.bool_()),
        ("n_rows", pa.int32()),
        ("row_tokens", pa.list_(pa.int32())),  # prompt and answer, of each answer
        ("tree_tokens", pa.int32()),
        ("loss_tokens", pa.int32()),
        ("n_asked", pa.int32()),
        ("prompt_blocks", pa.list_(pa.int64())),
    ]
)


@dataclass(frozen=True)
class TokenForm:
    """How records become tokens.

    Attributes:
        tokenizer: of the backbone.
        max_target_tokens: see `encode_question`.
        reserve_tokens: see `encode_question`.
        max_dialogue_tokens: longer dialogues are left out.
        tool_ids: every tool that a question may be answered with.
        answer_ends: how many tokens of the answer that names each of them are kept, where those behind bear no loss;
            () = all.
        call_numbers: what dialogues call a tool -> its number among the cards; calls of others ask for no card.
    """

    tokenizer: Any
    max_target_tokens: int
    reserve_tokens: int
    max_dialogue_tokens: int
    tool_ids: tuple[str, ...]
    answer_ends: tuple[int, ...] = ()
    call_numbers: Mapping[str, int] = field(default_factory=dict)

    @functools.cached_property
    def tool_numbers(self) -> dict[str, int]:
        """Of `tool_ids`, by id."""
        return {tool_id: number for number, tool_id in enumerate(self.tool_ids)}

    def compute_key(self, rows_hash: str) -> str:
        """Names the tokens of rows with that hash in this form."""
        content = {
            "rows": rows_hash,
            "code": _hash_code(),
            "tokenizer": hash_tokenizer(self.tokenizer),
            "limits": [self.max_target_tokens, self.reserve_tokens, self.max_dialogue_tokens],
            "tool_ids": self.tool_ids,
            "answer_ends": self.answer_ends,
            "call_numbers": dict(self.call_numbers),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]


@dataclass(frozen=True)
class TokenPart:
    """One file of questions and one of facts, of the same rows.

    Attributes:
        rows: questions in both.
        n_too_long: dialogues that were left out.
        called: tools that dialogues call, the ones that were left out too.
        files: name -> sha256.
    """

    rows: int
    n_too_long: int
    called: tuple[str, ...]
    files: dict[str, str]


@dataclass(frozen=True)
class TokenShards:
    """A tokenised split in storage; questions are counted through its parts from 0.

    Attributes:
        folder: see the module's docstring.
        parts: in order.
        is_found: whether they were there already.
    """

    folder: Location
    parts: tuple[TokenPart, ...]
    is_found: bool

    @property
    def n_questions(self) -> int:
        return sum(part.rows for part in self.parts)

    @property
    def n_too_long(self) -> int:
        return sum(part.n_too_long for part in self.parts)

    @property
    def called_tool_ids(self) -> frozenset[str]:
        """The tools that the dialogues call; `unknown` for those that call none."""
        return frozenset(tool_id for part in self.parts for tool_id in part.called)

    def read_facts(self) -> Iterator[pa.Table]:
        """The facts of each part, in `FACT_SCHEMA`."""
        folder = storage.open_folder(self.folder)
        for number in range(len(self.parts)):
            with storage.reading_file(folder / facts_name(number)) as stream:
                yield pq.read_table(stream, schema=FACT_SCHEMA)


def tokenize_shards(
    tokens_dir: Location, shards: Sequence[tuple[Location, int]], rows_hash: str, form: TokenForm
) -> TokenShards:
    """The tokens of a split: found, or made by Ray Data and kept. Several who need the same at once make it once.

    Args:
        tokens_dir: where tokenised splits lie: in a bucket, or on a file system that every Ray node shares.
        shards: Parquet files of rows of CORPUS_SCHEMA, and the rows in each.
        rows_hash: of the content of them all.
        form: how.

    Raises:
        InputError: a question is answered with another tool, or does not fit beside its answer.
    """
    folder = tokens_dir.absolute() / form.compute_key(rows_hash)
    with storage.locked(folder.parent / f"{folder.name}-being-made"):
        parts = _find_parts(folder)
        is_found = parts is not None
        if parts is None:
            with storage.replacing_folder(folder) as partial:
                parts = _write_parts(partial, shards, form)
                manifest = [vars(part) for part in parts]
                storage.write_file(partial / MANIFEST_FILE, json.dumps(manifest, indent=1) + "\n")
    return TokenShards(folder, tuple(parts), is_found)


def questions_name(part: int) -> str:
    """Of the file with a part's token ids."""
    return f"questions-{part:05d}.arrow"


def facts_name(part: int) -> str:
    """Of the file with a part's sizes."""
    return f"facts-{part:05d}.parquet"


def _find_parts(folder: Location) -> list[TokenPart] | None:
    """What the folder holds; None where it is not there, or not whole: it is made again then."""
    folder = storage.open_folder(folder)
    if not storage.exists(folder / MANIFEST_FILE):
        return None
    try:
        manifest = json.loads(storage.read_bytes(folder / MANIFEST_FILE))
        parts = [TokenPart(**{**part, "called": tuple(part["called"])}) for part in manifest]
        is_whole = all(
            storage.hash_file(folder / name) == sha256 for part in parts for name, sha256 in part.files.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return parts if is_whole else None


def _write_parts(folder: Location, shards: Sequence[tuple[Location, int]], form: TokenForm) -> list[TokenPart]:
    """Cut the shards into pieces and tokenise each in a task; the cut depends on the shards alone."""
    most = max(MIN_PART_ROWS, sum(rows for _, rows in shards) // MAX_PARTS_OF_A_SPLIT)
    pieces = []
    for path, rows in shards:
        n_pieces = -(-rows // most)
        ends = [rows * number // n_pieces for number in range(n_pieces + 1)]
        pieces += [(str(path), start, end) for start, end in itertools.pairwise(ends)]
    if not pieces:
        return []
    blocks = [
        pa.table({"part": [number], "path": [path], "start": [start], "end": [end]})
        for number, (path, start, end) in enumerate(pieces)
    ]
    dataset = ray.data.from_arrow(blocks)
    keep_order(dataset.context)
    write: Any = functools.partial(_write_part, form=form, folder=str(folder))
    done = dataset.map_batches(write, batch_format="pyarrow", batch_size=None)
    return [
        TokenPart(row["rows"], row["n_too_long"], tuple(row["called"]), json.loads(row["files"]))
        for row in done.iter_rows()
    ]


def _write_part(block: pa.Table, form: TokenForm, folder: str) -> pa.Table:
    """Tokenise one piece of a shard into one part; one row of what `TokenPart` holds."""
    (piece,) = block.to_pylist()
    questions, facts = [QUESTION_SCHEMA.empty_table()], [FACT_SCHEMA.empty_table()]
    n_too_long, called = 0, set[str]()
    for records in _read_records(locate(piece["path"]), piece["start"], piece["end"]):
        called |= {tool_id for record in records if record.is_dialogue for tool_id in record.valid_tool_ids}
        encoded = [(record, _encode_record(record, form)) for record in records]
        kept = [(record, question) for record, question in encoded if question.answers]
        n_too_long += len(encoded) - len(kept)
        tools = [None if record.is_dialogue else _number_tools(record, form) for record, _ in kept]
        calls = [_list_calls(form, record) for record, _ in kept]
        questions.append(_tabulate_questions([question for _, question in kept], tools, calls))
        facts.append(_tabulate_facts(kept, calls))
    names = questions_name(piece["part"]), facts_name(piece["part"])
    table = pa.concat_tables(questions).combine_chunks()
    files = [locate(folder) / name for name in names]
    with storage.writing_file(files[0]) as stream, pa.ipc.new_file(stream, QUESTION_SCHEMA) as writer:
        writer.write_batch(  # one batch, also where there is no row: what is mapped has no seams
            pa.RecordBatch.from_arrays([column.combine_chunks() for column in table.columns], schema=QUESTION_SCHEMA)
        )
    with storage.writing_file(files[1]) as stream:
        pq.write_table(pa.concat_tables(facts), stream, compression="zstd")
    hashes = {name: storage.hash_file(file) for name, file in zip(names, files, strict=True)}
    return pa.table(
        {
            "rows": [len(table)],
            "n_too_long": [n_too_long],
            "called": pa.array([sorted(called)], pa.list_(pa.string())),
            "files": [json.dumps(hashes)],
        }
    )


def _read_records(shard: Location, start: int, end: int) -> Iterator[list[ToolRecord]]:
    """The records of some rows of a shard, a batch at a time; row groups in front of them are passed over."""
    filesystem, name = filesystem_of(shard)
    with pq.ParquetFile(name, filesystem=filesystem, page_checksum_verification=True) as file:
        ends = np.cumsum([file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)])
        starts = ends - np.diff(ends, prepend=0)
        groups = np.flatnonzero((start < ends) & (starts < end)).tolist()
        first = int(starts[groups[0]]) if groups else 0
        for batch in file.iter_batches(_BATCH_ROWS, row_groups=groups):
            begin, stop = np.clip([start - first, end - first], 0, len(batch)).tolist()
            if begin < stop:
                yield [ToolRecord.from_row(row) for row in batch.slice(begin, stop - begin).to_pylist()]
            first += len(batch)


def _encode_record(record: ToolRecord, form: TokenForm) -> EncodedQuestion:
    """The record as token ids; one without answers for a dialogue that is too long."""
    if record.is_dialogue:
        question = encode_dialogue(form.tokenizer, record.instruction, record.turns)
        is_too_long = len(question.prompt_ids) + len(question.answers[0]) > form.max_dialogue_tokens
        return EncodedQuestion(question.prompt_ids, []) if is_too_long else question
    tools = _number_tools(record, form)
    question = encode_question(
        form.tokenizer,
        record.instruction,
        record.has_media,
        record.valid_tool_ids,
        form.max_target_tokens,
        form.reserve_tokens,
    )
    if not form.answer_ends:
        return question
    kept = [answer[: form.answer_ends[tool]] for answer, tool in zip(question.answers, tools, strict=True)]
    return EncodedQuestion(question.prompt_ids, kept)


def _tabulate_questions(
    questions: Sequence[EncodedQuestion], tools: Sequence[list[int] | None], calls: Sequence[list[tuple[int, int]]]
) -> pa.Table:
    columns: dict[str, Any] = {
        "prompt_ids": list_array([question.prompt_ids for question in questions], pa.int32()),
        "answers": [question.answers for question in questions],
        "bears_loss": [question.bears_loss for question in questions],
        "answer_tools": tools,
        "call_tools": [[tool for tool, _ in each] for each in calls],
        "call_starts": [[start for _, start in each] for each in calls],
    }
    return pa.table(columns, schema=QUESTION_SCHEMA)


def _tabulate_facts(
    kept: Sequence[tuple[ToolRecord, EncodedQuestion]], calls: Sequence[list[tuple[int, int]]]
) -> pa.Table:
    records, questions = [record for record, _ in kept], [question for _, question in kept]
    columns: dict[str, Any] = {
        "media_sha256": [record.media_sha256 for record in records],
        "modality": pa.array([record.modality.value for record in records], pa.string()).dictionary_encode(),
        "source": pa.array([record.source for record in records], pa.string()).dictionary_encode(),
        "is_dialogue": [record.is_dialogue for record in records],
        "n_rows": [len(question.answers) for question in questions],
        "row_tokens": [[len(q.prompt_ids) + len(answer) for answer in q.answers] for q in questions],
        "tree_tokens": [len(question.tree.input_ids) for question in questions],
        "loss_tokens": [sum(question.n_loss_tokens) for question in questions],
        "n_asked": [len(c) or int(not record.is_dialogue) for record, c in zip(records, calls, strict=True)],
        "prompt_blocks": list_array([hash_blocks(question.prompt_ids) for question in questions], pa.int64()),
    }
    return pa.table(columns, schema=FACT_SCHEMA)


def _list_calls(form: TokenForm, record: ToolRecord) -> list[tuple[int, int]]:
    """(tool's number, tokens of the turns before) of each call of a tool that has a number."""
    if not form.call_numbers or not record.is_dialogue:
        return []
    calls, start = [], 0
    turns: tuple[Turn, ...] = record.turns
    for turn, ids in zip(turns, encode_texts(form.tokenizer, [turn.text for turn in turns]), strict=True):
        call = parse_turn(turn.text) if turn.role == ASSISTANT else None
        if isinstance(call, ToolCall) and call.name in form.call_numbers:
            calls.append((form.call_numbers[call.name], start))
        start += len(ids)
    return calls


def _number_tools(record: ToolRecord, form: TokenForm) -> list[int]:
    strangers = [tool_id for tool_id in record.valid_tool_ids if tool_id not in form.tool_numbers]
    if strangers:
        raise InputError(
            f"record {record.record_id!r} is answered with {strangers[0]!r}, which is no tool that a question may be "
            "answered with: one with a name of its own is for dialogues only; leave its `name` out of the catalogue."
        )
    return [form.tool_numbers[tool_id] for tool_id in record.valid_tool_ids]


def hash_tokenizer(tokenizer: Any) -> str:
    """Of everything that decides how a tokenizer cuts text, as far as it can be told: its own data and its library."""
    digest = hashlib.sha256(f"{version('transformers')} {version('tokenizers')} {type(tokenizer).__name__}".encode())
    digest.update(f"{tokenizer.bos_token_id} {tokenizer.eos_token_id}".encode())
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        content = json.loads(backend.to_str())
        content |= {"truncation": None, "padding": None}  # state of the last call
        digest.update(json.dumps(content, sort_keys=True).encode())
        return digest.hexdigest()
    with tempfile.TemporaryDirectory(prefix="toolmm-") as folder:
        tokenizer.save_pretrained(folder)
        for file in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
            digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


@functools.cache
def _hash_code() -> str:
    """Of the rooms that tokens are made in: this one imports no other that has a say in them."""
    digest = hashlib.sha256()
    for file in sorted((*_PACKAGE.glob("batches/*.py"), *_PACKAGE.glob("records/*.py"))):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()
