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
        ("n_calls", pa.int32()),  # 0 but for dialogues
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
        question, question_by_path: int32, which questions are the same; numbers are common to both, -1 = none.
        medium, medium_by_path: the same of media.
        file: int32, which files are the same; -1 = text.
        group: int32, what moves together, numbered in the order of `test_rank`.
        val_order: int32 (groups,), the groups in the order of `val_rank`.
        sources: names.
        source, modality, ambiguity, split, n_calls: int, codes and numbers.
        has_file, is_dialogue, has_history: bool.
        tool_ids: names of the tools.
        tools: int32, numbers of the right tools of all records, one record's after the other's.
        tool_ends: int64, where each record's end.
    """

    question: np.ndarray
    question_by_path: np.ndarray
    medium: np.ndarray
    medium_by_path: np.ndarray
    file: np.ndarray
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

    def __len__(self) -> int:
        return len(self.question)

    @property
    def n_tools(self) -> np.ndarray:
        """Right tools of each record."""
        return np.diff(self.tool_ends, prepend=0)

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
    def _read(cls, read: Callable[[str], Iterator[pa.ChunkedArray]], tool_ids: tuple[str, ...]) -> Facts:
        """Take one column after the other: digests are large beside the numbers that they become."""

        def digests(*names: str) -> np.ndarray:
            return np.concatenate([to_digests(column) for name in names for column in read(name)])

        def plain(name: str) -> np.ndarray:
            return np.concatenate([column.to_numpy() for column in read(name)])

        group, n_groups = number_digests(digests("test_rank"))
        first = find_first(group, n_groups)
        val_rank = digests("val_rank")[first]
        val_order = np.lexsort((val_rank[:, 1], val_rank[:, 0])).astype(np.int32)
        del val_rank, first
        n = len(group)
        question = number_digests(digests("question", "question_by_path"))[0]
        medium = number_digests(digests("medium", "medium_by_path"))[0]
        sources: dict[str, int] = {}
        source = []
        for column in read("source"):
            encoded = column.combine_chunks().dictionary_encode()
            codes = [sources.setdefault(name, len(sources)) for name in encoded.dictionary.to_pylist()]
            source.append(np.array(codes, np.int16)[encoded.indices.to_numpy()])
        tools, lengths = [], []
        for column in read("tools"):
            lists = column.combine_chunks()
            tools.append(lists.flatten().to_numpy())
            lengths.append(lists.value_lengths().to_numpy())
        return cls(
            question=question[:n].copy(),
            question_by_path=question[n:].copy(),
            medium=medium[:n].copy(),
            medium_by_path=medium[n:].copy(),
            file=number_digests(digests("file"))[0],
            group=group,
            val_order=val_order,
            sources=tuple(sources),
            source=np.concatenate(source),
            modality=plain("modality"),
            ambiguity=plain("ambiguity"),
            split=plain("split").copy(),
            n_calls=plain("n_calls"),
            has_file=plain("has_file"),
            is_dialogue=plain("is_dialogue"),
            has_history=plain("has_history"),
            tool_ids=tool_ids,
            tools=np.concatenate(tools),
            tool_ends=np.cumsum(np.concatenate(lengths), dtype=np.int64),
        )
