"""Join records of one question within one split; media are compared by content where it is known."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from data_pipeline.corpus.attach import FactsForm
from data_pipeline.corpus.digests import find_first
from data_pipeline.corpus.facts import NO_SPLIT, ReadColumn, number_columns, read_column, split_code
from data_pipeline.corpus.parts import (
    Parts,
    facts_file,
    read_rows,
    rows_file,
    run_each,
    tabulate,
    take_rows,
    to_records,
    write_rows,
)
from data_pipeline.locations import Location
from data_pipeline.records.schema import SPLITS, ToolRecord
from data_pipeline.sources.reading import SourceReading, merge_records


@dataclass(frozen=True)
class _Job:
    """One part.

    Attributes:
        kept: places of the rows that stay.
        first: for each record that is joined to a row of this part, in the order in which they are joined, that row's
            place.
        others: these records, in the same order: files, and places in each.
    """

    folder: Location
    name: str
    new_name: str
    kept: np.ndarray
    first: np.ndarray
    others: list[tuple[Location, np.ndarray]]
    rows: np.ndarray
    form: FactsForm


@dataclass(frozen=True)
class _Done:
    """`merged`: (row of the later one, `source_index` of the earlier one, of the later one), of released test files."""

    name: str
    size: int
    merged: list[tuple[int, int, int]]


def join_questions(parts: Parts, reading: SourceReading, form: FactsForm) -> tuple[Parts, int]:
    """Join records of one question.

    A question without a split is joined to one of another source that prescribes its own (training, where several are).

    Args:
        parts: the records; those of one question that come first keep their place.
        reading: their source; what was joined of a released test file is counted there.
        form: of the facts of joined records.

    Returns:
        the parts with what stays, and how many records were joined to an earlier one. They are as before where none is.
    """
    first = _find_first(functools.partial(read_column, parts.facts))
    is_joined = first != np.arange(len(first))
    n_joined = int(is_joined.sum())
    if not n_joined:
        return parts, 0
    joined = np.flatnonzero(is_joined)
    joined = joined[np.argsort(first[joined], kind="stable")]  # by the part that they go to, then in order
    bounds = np.searchsorted(first[joined], parts.starts)

    def jobs() -> Iterator[_Job]:
        for part, name in enumerate(parts.names):
            start, end = parts.starts[part], parts.starts[part + 1]
            rows = np.sort(joined[bounds[part] : bounds[part + 1]])
            kept = np.flatnonzero(~is_joined[start:end])
            is_changed = len(rows) > 0 or len(kept) < end - start
            new_name = f"joined-{part:06d}" if is_changed else name
            yield _Job(parts.folder, name, new_name, kept, first[rows] - start, parts.cut(rows), rows, form)

    done = [each for each in run_each(_join, jobs(), parts.is_small) if each.size]
    merged = reading.merged_source_indexes
    for _, index, other in sorted(event for each in done for event in each.merged):
        merged.setdefault(index, []).extend([other, *merged.pop(other, ())])
    return Parts(parts.folder, tuple(each.name for each in done), tuple(each.size for each in done)), n_joined


def _find_first(read: ReadColumn) -> np.ndarray:
    """The first row of each row's question, int32."""
    (question,), n_questions = number_columns(read, "question")
    split = np.concatenate([column.to_numpy() for column in read("split")])
    prescribed = np.full(n_questions, NO_SPLIT, np.int8)
    for name in reversed(SPLITS):  # training last, so that it wins
        prescribed[question[split == split_code(name)]] = split_code(name)
    split = np.where(split != NO_SPLIT, split, prescribed[question])
    first = np.zeros(len(question), np.int32)
    for code in np.unique(split):
        is_in = split == code
        first[is_in] = find_first(np.where(is_in, question, np.int32(-1)), n_questions)[question[is_in]]
    return first


def _join(job: _Job) -> _Done:
    """Runs as a task on one part."""
    if job.new_name == job.name:
        return _Done(job.name, len(job.kept), [])
    table = read_rows(rows_file(job.folder, job.name))
    records: dict[int, ToolRecord] = {}
    merged: list[tuple[int, int, int]] = []
    others = (record for file, places in job.others for record in to_records(take_rows(file, places)))
    for place, row, record in zip(job.first.tolist(), job.rows.tolist(), others, strict=True):
        first = records.get(place) or to_records(table.slice(place, 1))[0]
        if record.split and not first.split:
            first, record = record, first
        records[place] = merge_records(first, record)
        if first.source_index is not None and record.source_index is not None:
            merged.append((row, first.source_index, record.source_index))
    kept = [
        records.get(place) or record
        for place, record in zip(job.kept.tolist(), to_records(table.take(pa.array(job.kept))), strict=True)
    ]
    if kept:
        write_rows(rows_file(job.folder, job.new_name), tabulate(kept))
        job.form.write(facts_file(job.folder, job.new_name), kept)
    return _Done(job.new_name, len(kept), merged)
