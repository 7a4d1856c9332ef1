"""Content hashes of media files, computed on Ray Data."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import pyarrow as pa

from data_pipeline import storage
from data_pipeline.locations import Location, locate

URIS_PER_BLOCK = 256  # small enough to spread over workers, large enough that a task is worth its start


def hash_media(media_root: Location, media_uris: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each path with the sha256 (hex) of its file's bytes, "" where that is missing or cannot be read, as they come.

    Args:
        media_root: folder or bucket that every Ray node can read.
        media_uris: distinct paths relative to it.
    """
    import ray  # lazily: reading a corpus needs no Ray

    if not media_uris:
        return
    table = pa.table({"media_uri": list(media_uris)})
    blocks = [table.slice(start, URIS_PER_BLOCK) for start in range(0, len(table), URIS_PER_BLOCK)]
    hashed = ray.data.from_arrow(blocks).map_batches(
        functools.partial(_hash_block, media_root=str(media_root)), batch_format="pyarrow", batch_size=None
    )
    for row in hashed.iter_rows():
        yield row["media_uri"], row["sha256"]


def _hash_block(block: pa.Table, media_root: str) -> pa.Table:
    root = locate(media_root)
    hashes = [_hash_medium(root / uri) for uri in block["media_uri"].to_pylist()]
    return pa.table({"media_uri": block["media_uri"], "sha256": pa.array(hashes, pa.string())})


def _hash_medium(file: Location) -> str:
    try:
        return storage.hash_file(file)
    except OSError:  # missing, a folder, or not readable: all count as missing and are reported by the corpus
        return ""
