"""Read a source to its end into parts: here, row by row, or in tasks where it can be cut."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from data_pipeline.corpus.digests import DIGEST_BYTES, digest_text, find_first, number_digests
from data_pipeline.corpus.parts import (
    PART_ROWS,
    Parts,
    Rejections,
    read_rows,
    rows_file,
    run_each,
    tabulate,
    write_rejected,
    write_rows,
)
from data_pipeline.errors import InputError
from data_pipeline.locations import Location
from data_pipeline.records.schema import ToolRecord
from data_pipeline.sources.reading import Counted, Rejected, SourcePiece, SourceReading, UncutError

ShowProgress = Callable[[int, int | None, str], None]  # done, of how many where that is known, of what


@dataclass
class Collected:
    """All records of a source.

    Attributes:
        parts: with the records as the source gives them.
        has_media: of each part, whether a record in it has a medium.
        rejected: what is not among them, and why.
    """

    parts: Parts
    has_media: tuple[bool, ...]
    rejected: Rejections


@dataclass
class _Written:
    """What of a source is in files: names, sizes, and what has to be known of all records."""

    names: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    has_media: list[bool] = field(default_factory=list)
    ids: list[bytes] = field(default_factory=list)  # digests of a part's record ids, joined
    rejected: Rejections = field(default_factory=Rejections)

    def extend(self, other: _Written) -> None:
        self.names += other.names
        self.sizes += other.sizes
        self.has_media += other.has_media
        self.ids += other.ids
        self.rejected.files += other.rejected.files
        self.rejected.reasons.update(other.rejected.reasons)


@dataclass(frozen=True)
class _Job:
    piece: SourcePiece
    folder: Location
    name: str


def collect(reading: SourceReading, folder: Location, show: ShowProgress) -> Collected:
    """Read a source into `folder`; of what it counts while it is read, everything is in `reading` afterwards.

    Raises:
        InputError: of the source, or a record id is used twice.
    """
    written = None
    if len(reading.pieces) > 1:
        written = _collect_pieces(reading, folder, show)
    if written is None:
        written = _write(reading, folder, "read", lambda done: show(done, reading.n_expected, "records"))
    parts = Parts(folder, tuple(written.names), tuple(written.sizes))
    _check_ids(parts, written.ids, reading.name)
    return Collected(parts, tuple(written.has_media), written.rejected)


def _collect_pieces(reading: SourceReading, folder: Location, show: ShowProgress) -> _Written | None:
    """Read the pieces in tasks; None where it turns out that the source has to be read as a whole."""
    jobs = [_Job(piece, folder, f"read-{number:05d}") for number, piece in enumerate(reading.pieces)]
    all_written, all_counted = _Written(), []
    for result in run_each(_collect_piece, jobs, is_small=False):
        if result is None:
            return None
        written, counted = result
        all_written.extend(written)
        all_counted.append(counted)
        show(sum(all_written.sizes), reading.n_expected, "records")
    for counted in all_counted:
        reading.add(counted)
    return all_written


def _collect_piece(job: _Job) -> tuple[_Written, Counted] | None:
    """Runs as a task on one piece."""
    reading = job.piece.read()
    try:
        written = _write(reading, job.folder, job.name, lambda done: None)
    except UncutError:
        return None
    return written, reading.counted


def _write(
    items: Iterable[ToolRecord | Rejected], folder: Location, name: str, show: Callable[[int], None]
) -> _Written:
    """Write items as they come, `PART_ROWS` at a time."""
    written = _Written()
    records: list[ToolRecord] = []
    rejected: list[Rejected] = []

    def flush() -> None:
        part = f"{name}-{len(written.names):05d}"
        if records:
            write_rows(rows_file(folder, part), tabulate(records))
            written.names.append(part)
            written.sizes.append(len(records))
            written.has_media.append(any(record.has_media for record in records))
            written.ids.append(b"".join(digest_text(record.record_id) for record in records))
        file = folder / f"{name}-{len(written.rejected.files):05d}.rejected.jsonl"
        written.rejected.add(file, write_rejected(file, rejected))
        records.clear()
        rejected.clear()

    for number, item in enumerate(items, start=1):
        show(number)
        if isinstance(item, Rejected):
            rejected.append(item)
        else:
            records.append(item)
        if len(records) + len(rejected) == PART_ROWS:
            flush()
    flush()
    return written


def _check_ids(parts: Parts, ids: list[bytes], source: str) -> None:
    digests = np.empty((parts.n_rows, DIGEST_BYTES // 8), np.uint64)
    for part in reversed(range(len(parts))):  # each is given back as soon as it is read
        digests[parts.starts[part] : parts.starts[part + 1]] = np.frombuffer(ids.pop(), ">u8").reshape(-1, 2)
    numbers, n_distinct = number_digests(digests)
    if n_distinct == len(numbers):
        return
    is_again = np.ones(len(numbers), bool)
    is_again[find_first(numbers, n_distinct)] = False
    (part,), (place,) = parts.locate(np.flatnonzero(is_again)[:1])
    record_id = read_rows(parts.rows(part))["record_id"][int(place)].as_py()
    raise InputError(f"record id {record_id!r} of source {source!r} is used twice; make it unique.")
