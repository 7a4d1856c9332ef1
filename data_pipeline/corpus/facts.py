"""What dedupe, splits, audit and counts ask of a record, as columns: some 50 bytes a row, whatever the record holds."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline import storage
from data_pipeline.corpus.digests import DIGEST, DIGEST_BYTES, digest_text, find_first, number_digests, to_digests
from data_pipeline.locations import Location
from data_pipeline.records.dialogue import count_calls, has_history
from data_pipeline.records.keys import group_key, media_keys, question_keys
from data_pipeline.records.schema import SPLITS, AmbiguityType, Modality, ToolRecord

NO_SPLIT = 0  # of a split's code; the others are those of `SPLITS`, from 1
MODALITIES, AMBIGUITIES = tuple(Modality), tuple(AmbiguityType)  # whose codes are their places

ReadColumn = Callable[[str], Iterator[pa.ChunkedArray]]  # a column of `SCHEMA`, part by part

SCHEMA = pa.schema(
    [
        ("question", DIGEST),  # (medium, words), the medium by content where that is known
        ("question_by_path", DIGEST),  # the same with the medium's path; null where that is the other
        ("medium", DIGEST),  # null for text
        ("medium_by_path", DIGEST),
        ("file", DIGEST),  # of the medium, however it is used; null for text
        ("test_rank", DIGEST),  # of the record's group: its place in the order in which groups leave for the test split
        ("val_rank", DIGEST),
        ("source", pa.string()),
        ("modality", pa.int8()),
        ("ambiguity", pa.int8()),
        ("split", pa.int8()),
        ("tools", pa.list_(pa.int32())),
        ("source_index", pa.int64()),
        ("has_file", pa.bool_()),
        ("is_dialogue", pa.bool_()),
        ("n_calls", pa.int16()),  # 0 but for dialogues
        ("has_history", pa.bool_()),
    ]
)


def split_code(split: str) -> int:
    """A split's number in the columns; `NO_SPLIT` for ""."""
    return SPLITS.index(split) + 1 if split else NO_SPLIT


def tabulate_facts(records: Sequence[ToolRecord], seed: int, tool_numbers: Mapping[str, int]) -> pa.Table:
    """The facts of records, in `SCHEMA`.

    Args:
        records: in order.
        seed: of the splits.
        tool_numbers: of every tool that is right for one of them.
    """
    questions, media = [question_keys(record) for record in records], [media_keys(record) for record in records]
    groups = [group_key(record) for record in records]
    columns: dict[str, Any] = {
        "question": [_digest_pair(keys[0]) for keys in questions],
        "question_by_path": [_digest_pair(keys[1]) if len(keys) > 1 else None for keys in questions],
        "medium": [digest_text(keys[0]) if keys else None for keys in media],
        "medium_by_path": [digest_text(keys[1]) if len(keys) > 1 else None for keys in media],
        "file": [digest_text(r.media_sha256 or r.media_uri) if r.has_media else None for r in records],
        "test_rank": [digest_text(f"test:{seed}:{group}") for group in groups],
        "val_rank": [digest_text(f"val:{seed}:{group}") for group in groups],
        "source": [record.source for record in records],
        "modality": [MODALITIES.index(record.modality) for record in records],
        "ambiguity": [AMBIGUITIES.index(record.ambiguity_type) for record in records],
        "split": [split_code(record.split) for record in records],
        "tools": [[tool_numbers[tool_id] for tool_id in record.valid_tool_ids] for record in records],
        "source_index": [-1 if record.source_index is None else record.source_index for record in records],
        "has_file": [bool(record.media_sha256) for record in records],
        "is_dialogue": [record.is_dialogue for record in records],
        "n_calls": [count_calls(record.turns) if record.is_dialogue else 0 for record in records],
        "has_history": [record.is_dialogue and has_history(record.instruction) for record in records],
    }
    return pa.table(columns, schema=SCHEMA)


def _digest_pair(key: tuple[str, str]) -> bytes:
    medium, words = key  # the length tells where the one ends
    return hashlib.sha256(f"{len(medium)}:{medium}{words}".encode()).digest()[:DIGEST_BYTES]


def read_column(files: Sequence[Location], name: str) -> Iterator[pa.ChunkedArray]:
    """One column of each of the files that `write_facts` left."""
    for file in files:
        with storage.reading_file(file) as stream:
            yield pq.ParquetFile(stream).read(columns=[name], use_threads=False)[name]


def write_facts(file: Location, table: pa.Table) -> None:
    """Write the facts of a part, so that columns can be read alone."""
    with storage.writing_file(file) as stream:
        pq.write_table(table, stream, compression="none", use_dictionary=False)


@dataclass
class Facts:
    """The facts of many records; arrays have one element a record where nothing else is said.

    Attributes:
        group: int32, what moves together, numbered in the order of `test_rank`.
        val_order: int32 (groups,), the groups in the order of `val_rank`.
        sources: names.
        source, modality, ambiguity, split, n_calls: int, codes and numbers.
        has_file, is_dialogue, has_history: bool.
        tool_ids: names of the tools.
        tools: int, numbers of the right tools of all records, one record's after the other's.
        tool_ends: int, where each record's end.
        read: a column in parts, for what is asked for once.
    """

    group: np.ndarray
    val_order: np.ndarray
    sources: tuple[str, ...]
    source: np.ndarray
    modality: np.ndarray
    ambiguity: np.ndarray
    split: np.ndarray
    n_calls: np.ndarray
    has_file: np.ndarray
    is_dialogue: np.ndarray
    has_history: np.ndarray
    tool_ids: tuple[str, ...]
    tools: np.ndarray
    tool_ends: np.ndarray
    read: ReadColumn

    def __len__(self) -> int:
        return len(self.group)

    @property
    def n_tools(self) -> np.ndarray:
        """Right tools of each record."""
        return np.diff(self.tool_ends, prepend=self.tool_ends.dtype.type(0))

    def tools_of(self, is_chosen: np.ndarray) -> np.ndarray:
        """The tools of some records, one after the other; `is_chosen` is a mask."""
        return self.tools[np.repeat(is_chosen, self.n_tools)]

    def tools_of_row(self, row: int) -> list[int]:
        start = self.tool_ends[row - 1] if row else 0
        return self.tools[start : self.tool_ends[row]].tolist()

    @classmethod
    def of_records(cls, records: Sequence[ToolRecord], seed: int = 0) -> Facts:
        """The facts of records that are at hand."""
        tool_ids = tuple(dict.fromkeys(tool_id for record in records for tool_id in record.valid_tool_ids))
        table = tabulate_facts(records, seed, {tool_id: number for number, tool_id in enumerate(tool_ids)})
        return cls._read(lambda name: iter([table[name]]), tool_ids)

    @classmethod
    def of_files(cls, files: Sequence[Location], tool_ids: tuple[str, ...]) -> Facts:
        """The facts in files that `write_facts` left."""
        return cls._read(functools.partial(read_column, files), tool_ids)

    @classmethod
    def _read(cls, read: ReadColumn, tool_ids: tuple[str, ...]) -> Facts:
        """Take one column after the other: digests are large beside the numbers that they become."""
        (group,), n_groups = number_columns(read, "test_rank")
        first = find_first(group, n_groups)
        (val_rank,), _ = number_columns(read, "val_rank")
        val_order = np.empty(n_groups, np.int32)
        val_order[val_rank[first]] = np.arange(n_groups, dtype=np.int32)  # ranks are a permutation of the groups
        del val_rank, first
        sources: dict[str, int] = {}
        source = []
        for column in read("source"):
            encoded = column.combine_chunks().dictionary_encode()
            codes = [sources.setdefault(name, len(sources)) for name in encoded.dictionary.to_pylist()]
            source.append(np.array(codes, np.int16)[encoded.indices.to_numpy()])
        tool_type = np.int16 if len(tool_ids) < 2**15 else np.int32
        tools, lengths = [], []
        for column in read("tools"):
            lists = column.combine_chunks()
            tools.append(lists.flatten().to_numpy().astype(tool_type))
            lengths.append(lists.value_lengths().to_numpy())
        end_type = np.int32 if sum(map(len, tools)) < 2**31 else np.int64

        def plain(name: str) -> np.ndarray:
            return np.concatenate([column.to_numpy() for column in read(name)])

        return cls(
            group=group,
            val_order=val_order,
            sources=tuple(sources),
            source=np.concatenate(source),
            modality=plain("modality"),
            ambiguity=plain("ambiguity"),
            split=plain("split"),
            n_calls=plain("n_calls"),
            has_file=plain("has_file"),
            is_dialogue=plain("is_dialogue"),
            has_history=plain("has_history"),
            tool_ids=tool_ids,
            tools=np.concatenate(tools),
            tool_ends=np.cumsum(np.concatenate(lengths), dtype=end_type),
            read=read,
        )


def number_columns(read: ReadColumn, *names: str) -> tuple[list[np.ndarray], int]:
    """Columns of digests as numbers, int32, -1 for null; equal digests have equal numbers, across the columns as well.

    Returns:
        the numbers of each column, and how many distinct ones there are. What is null throughout takes no memory.
    """
    sizes = []  # rows of each column, and whether all are null
    for name in names:
        counts = [(len(part), part.null_count) for part in read(name)]
        n_rows = sum(n for n, _ in counts)
        sizes.append((n_rows, n_rows == sum(n for _, n in counts)))
    digests = np.empty((sum(n for n, is_null in sizes if not is_null), 2), np.uint64)
    end = 0
    for name, (_, is_null) in zip(names, sizes, strict=True):
        for part in () if is_null else read(name):  # one part at a time: the digests are there once
            start, end = end, end + len(part)
            digests[start:end] = to_digests(part)
    numbers, n_distinct = number_digests(digests)
    del digests
    result, end = [], 0
    for n_rows, is_null in sizes:
        if is_null:
            result.append(np.broadcast_to(np.int32(-1), n_rows))
        else:
            start, end = end, end + n_rows
            result.append(numbers[start:end])
    return result, n_distinct
