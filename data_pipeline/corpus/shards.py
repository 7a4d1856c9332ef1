"""Write the splits of a corpus as Parquet, and hash what is in them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline import storage
from data_pipeline.corpus.facts import split_code
from data_pipeline.corpus.parts import Parts, run_each, take_rows
from data_pipeline.locations import Location
from data_pipeline.records.catalog import ToolCatalog
from data_pipeline.records.schema import CORPUS_SCHEMA, SPLITS

_HASHED_BYTES = 2**22  # read at a time


@dataclass(frozen=True)
class _Job:
    """One shard: files, and the places of the rows in each."""

    folder: Location
    path: str
    split: str
    rows: list[tuple[Location, np.ndarray]]
    work: Location


def write_shards(
    folder: Location, parts: Parts, splits: np.ndarray, catalog: ToolCatalog, shard_rows: int
) -> tuple[str, list[dict[str, Any]]]:
    """Write the rows as Parquet; file names and bytes depend on the rows and `shard_rows` alone.

    Args:
        folder: of the corpus.
        parts: the rows.
        splits: int8, the code of each row's split; rows without one are left out.
        catalog: goes into the hash.
        shard_rows: of one file.

    Returns:
        the corpus's `data_hash`: sha256 over the catalogue's hash and all rows as canonical JSON, in order; and the
        manifest's entries: path (relative), split, rows, bytes, sha256; in order.
    """

    def jobs() -> Iterator[_Job]:
        for split in SPLITS:
            rows = np.flatnonzero(splits == split_code(split))
            for number, start in enumerate(range(0, len(rows), shard_rows)):
                path = f"{split}/part-{number:05d}.parquet"
                yield _Job(folder, path, split, parts.cut(rows[start : start + shard_rows]), parts.folder)

    digest = hashlib.sha256(catalog.content_hash.encode())
    entries = []
    for entry in run_each(_write_shard, jobs(), parts.is_small):
        rows_as_json = _json_file(parts.folder, entry["path"])
        with storage.reading_file(rows_as_json) as stream:
            while block := stream.read(_HASHED_BYTES):
                digest.update(block)
        storage.remove_file(rows_as_json)
        entries.append(entry)
    return digest.hexdigest(), entries


def _write_shard(job: _Job) -> dict[str, Any]:
    """Runs as a task: one shard, and its rows as canonical JSON, a line each."""
    table = pa.concat_tables([take_rows(file, places) for file, places in job.rows]).combine_chunks()
    column = CORPUS_SCHEMA.get_field_index("split")
    table = table.set_column(column, CORPUS_SCHEMA.field(column), pa.array([job.split] * len(table), pa.string()))
    file = job.folder / job.path
    with storage.writing_file(file) as stream:
        pq.write_table(table, stream, compression="zstd", write_page_checksum=True)
    with storage.writing_file(_json_file(job.work, job.path)) as stream:
        for batch in table.to_batches(1024):
            for row in batch.to_pylist():
                stream.write(json.dumps(row, sort_keys=True, ensure_ascii=False).encode() + b"\n")
    return {
        "path": job.path,
        "split": job.split,
        "rows": len(table),
        "bytes": storage.size_of(file),
        "sha256": storage.hash_file(file),
    }


def _json_file(folder: Location, path: str) -> Location:
    return folder / f"{path.replace('/', '-')}.json"
