"""Answers that are kept while others are still to come: an evaluation that is killed goes on from them."""

from __future__ import annotations

import hashlib
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline import storage
from data_pipeline.locations import Location, locate

SHARD_ROWS = 10_000  # of one file
WRITE_EVERY_S = 60.0  # fewer rows than that are written, too: an evaluation that is killed loses no more than this
_PROJECT = Path(__file__).resolve().parents[2]


class KeptAnswers:
    """Answers in files of a folder. Use it as a context manager: what is at hand is written at its end, by an
    error, too.

    Attributes:
        rows: by "position", those that were found and those that were added.
    """

    def __init__(self, folder: Location) -> None:
        self._folder = folder
        self._new: list[pa.Table] = []
        self._written_s = time.monotonic()
        self.rows: dict[int, dict[str, Any]] = {}
        for file in storage.list_files(folder, ".parquet"):
            with storage.reading_file(file) as stream:
                self._take(pq.read_table(stream))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._flush()

    def add(self, answers: pa.Table) -> None:
        """Take what actors gave, a row with "position" for each item."""
        self._take(answers)
        self._new.append(answers)
        n_new = sum(map(len, self._new))
        if n_new >= SHARD_ROWS or time.monotonic() - self._written_s >= WRITE_EVERY_S:
            self._flush()

    def _take(self, answers: pa.Table) -> None:
        self.rows |= {row["position"]: row for row in answers.to_pylist()}

    def _flush(self) -> None:
        if self._new:
            with storage.writing_file(self._folder / f"answers-{uuid.uuid4().hex}.parquet") as stream:
                pq.write_table(pa.concat_tables(self._new), stream, compression="zstd")
            self._new.clear()
        self._written_s = time.monotonic()


def compute_key(actor: type, job: Any, checkpoint: str, table: pa.Table) -> str:
    """Names the answers to a table: a hash of all that they depend on.

    Args:
        actor: class that answers.
        job: what it is built from; its `repr` holds everything but the weights.
        checkpoint: folder with the weights.
        table: what is asked, in order.
    """
    digest = hashlib.sha256(f"{actor.__qualname__} {job!r}".encode())
    for file in storage.list_files(storage.open_folder(locate(checkpoint))) if checkpoint else ():
        digest.update(f"{file.name} {storage.hash_file(file)}".encode())
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    digest.update(sink.getvalue())
    for file in sorted(
        path for name in ("data_pipeline", "model", "ray_jobs") for path in (_PROJECT / name).rglob("*.py")
    ):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:24]
