"""A corpus on its way: parts of some thousand rows in files of a work folder, and what is done to each of them.

A driver holds one part at a time; tasks of Ray do the rest, a bounded number at once. What is small is done here.
"""

from __future__ import annotations

import collections
import functools
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from data_pipeline import storage
from data_pipeline.errors import InputError
from data_pipeline.locations import Location
from data_pipeline.records.schema import CORPUS_SCHEMA, ToolRecord
from data_pipeline.sources.reading import Rejected

PART_ROWS = 10_000  # some MB, and seconds of work: a task is worth its start
TASKS_PER_CPU = 2  # under way at once: enough that no CPU waits for the driver

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Parts:
    """All rows, as one stage leaves them for the next.

    Attributes:
        folder: where they lie; every Ray node can read and write it.
        names: of each part.
        sizes: rows of each part.
    """

    folder: Location
    names: tuple[str, ...]
    sizes: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def n_rows(self) -> int:
        return sum(self.sizes)

    @property
    def is_small(self) -> bool:
        """So few rows that no task is worth its start."""
        return self.n_rows <= PART_ROWS

    @functools.cached_property
    def starts(self) -> np.ndarray:
        """The first row of each part, and the number of all, int64 (parts + 1,)."""
        return np.concatenate([[0], np.cumsum(self.sizes)]).astype(np.int64)

    def locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The part of each row, and its place there; int64."""
        parts = np.searchsorted(self.starts, rows, side="right") - 1
        return parts, rows - self.starts[parts]

    def cut(self, rows: np.ndarray) -> list[tuple[Location, np.ndarray]]:
        """Rows that are grouped by part, as files and the places of the rows in each."""
        parts, places = self.locate(rows)
        bounds = [*np.flatnonzero(np.diff(parts, prepend=-1)).tolist(), len(rows)]
        return [(self.rows(int(parts[start])), places[start:end]) for start, end in itertools.pairwise(bounds)]

    def rows(self, part: int) -> Location:
        """The file with a part's rows."""
        return rows_file(self.folder, self.names[part])

    @property
    def facts(self) -> list[Location]:
        """The files with what planning asks of each part's rows (`facts.py`)."""
        return [facts_file(self.folder, name) for name in self.names]


def rows_file(folder: Location, name: str) -> Location:
    """The file with the rows of a part of this name."""
    return folder / f"{name}.arrow"


def facts_file(folder: Location, name: str) -> Location:
    """The file with the facts of a part of this name."""
    return folder / f"{name}.parquet"


@dataclass
class Rejections:
    """What was left out so far: in files, one after the other, and counted by reason."""

    files: list[Location] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, file: Location, reasons: Counter[str]) -> None:
        """Add what a stage wrote; nothing where it has rejected nothing."""
        if reasons:
            self.files.append(file)
            self.reasons.update(reasons)


def _count_cpus() -> int:
    """CPUs of the cluster; of one machine no more than it has, whatever Ray was told: each makes a process start."""
    import ray

    logical = max(1, int(ray.cluster_resources().get("CPU", 1)))
    return min(logical, os.cpu_count() or 1) if len(ray.nodes()) == 1 else logical


def write_rejected(file: Location, rejected: Sequence[Rejected]) -> Counter[str]:
    """Write rejected items, if there are any, as lines of `rejected.jsonl`; how many for each reason."""
    if rejected:
        storage.write_file(file, "".join(render_rejected(item) for item in rejected))
    return Counter(item.reason for item in rejected)


def render_rejected(item: Rejected) -> str:
    """A line of `rejected.jsonl`."""
    return json.dumps({"where": item.where, "reason": item.reason}, ensure_ascii=False) + "\n"


def run_each(work: Callable[[_Job], _Result], jobs: Iterable[_Job], is_small: bool) -> Iterator[_Result]:
    """The results of all jobs, in order: of Ray tasks, or made here where there is little to do.

    Args:
        work: a function of a module.
        jobs: made when a task can take them, so that no more than those under way are held.
        is_small: do the work in this process.

    Raises:
        InputError: raised by `work`.
    """
    if is_small:
        yield from map(work, jobs)
        return
    import ray  # lazily: reading a corpus needs no Ray
    from ray.exceptions import RayTaskError

    task = ray.remote(work)
    most = TASKS_PER_CPU * _count_cpus()
    under_way: collections.deque[Any] = collections.deque()
    waiting = iter(jobs)
    try:
        while True:
            while len(under_way) < most and (job := next(waiting, None)) is not None:
                under_way.append(task.remote(job))
            if not under_way:
                return
            yield ray.get(under_way.popleft())
    except RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise error.cause from None
        raise
    finally:
        for reference in under_way:
            ray.cancel(reference, force=False)


def tabulate(records: Sequence[ToolRecord]) -> pa.Table:
    """Records as rows of CORPUS_SCHEMA."""
    return pa.Table.from_pylist([record.to_row() for record in records], CORPUS_SCHEMA)


def to_records(table: pa.Table) -> list[ToolRecord]:
    """Rows of CORPUS_SCHEMA as records."""
    return [ToolRecord.from_row(row) for row in table.to_pylist()]


def write_rows(file: Location, table: pa.Table) -> None:
    """Write one part, so that some of its rows can be taken without reading the others."""
    with storage.writing_file(file) as stream, pa.ipc.new_file(stream, CORPUS_SCHEMA) as writer:
        writer.write_table(table)


def read_rows(file: Location) -> pa.Table:
    """A part's rows; on a disk they are mapped into memory, so that only what is used is read."""
    if isinstance(file, Path):
        with pa.memory_map(str(file)) as mapped:
            return pa.ipc.open_file(mapped).read_all()
    return pa.ipc.open_file(pa.BufferReader(storage.read_bytes(file))).read_all()


def take_rows(file: Location, rows: np.ndarray) -> pa.Table:
    """Some of a part's rows, copied out of it."""
    return read_rows(file).take(pa.array(rows))
