"""The media vectors of a corpus as one file in storage, which is mapped into memory: nobody holds them all.

    <vectors>/<key>/vectors.bin     (N, E) in the lake's dtype, row after row
    <vectors>/<key>/vectors.json    its sha256

The lake's files are compressed and ordered as they were encoded; a rank asks for rows in the order of a shuffled plan.
The key is a hash of the encoder and of the media, so the file is written once, and can be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from data_pipeline import storage
from data_pipeline.locations import Location

VECTORS_FILE = "vectors.bin"
MANIFEST_FILE = "vectors.json"


@dataclass(frozen=True)
class VectorFile:
    """Where vectors lie.

    Attributes:
        folder: in a bucket, or on a file system that every Ray node shares; None where there is no vector.
        n_rows: N.
        embed_dim: E.
        dtype: "float16" or "float32".
    """

    folder: Location | None
    n_rows: int
    embed_dim: int
    dtype: str


class VectorTable:
    """The rows of a `VectorFile`. Of one in a bucket this machine keeps a copy on its disk.

    Attributes:
        file: see there.
        matrix: (N, E) in the file's dtype, mapped and not read.
    """

    def __init__(self, file: VectorFile) -> None:
        self.file = file
        self._map: mmap.mmap | None = None
        self.matrix = np.zeros((0, file.embed_dim), file.dtype)
        if file.folder is not None:
            with (storage.fetch_folder(file.folder) / VECTORS_FILE).open("rb") as stream:
                self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            self._map.madvise(mmap.MADV_RANDOM)  # a plan is shuffled: what lies behind a row is not asked for next
            self.matrix = np.frombuffer(self._map, file.dtype).reshape(file.n_rows, file.embed_dim)

    def take(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """float32 [M, E] of M rows; exact, whatever they are stored in."""
        return self.matrix[np.asarray(rows, np.int64)].astype(np.float32)

    def release(self) -> None:
        """Give back the memory of what has been read: it is read again where it is asked for again."""
        if self._map is not None:
            self._map.madvise(mmap.MADV_DONTNEED)


def write_vectors(
    vectors_dir: Location, key: str, shape: tuple[int, int], dtype: str, fill: Callable[[np.ndarray], None]
) -> VectorFile:
    """The file of a key: found whole, or written. Several who need the same at once write it once.

    Args:
        vectors_dir: where such files lie.
        key: says which vectors, in which order.
        shape: (N, E).
        dtype: "float16" or "float32".
        fill: puts the vectors into an (N, E) matrix; called only where there is no file.
    """
    n_rows, embed_dim = shape
    if not n_rows:
        return VectorFile(None, n_rows, embed_dim, dtype)
    name = hashlib.sha256(f"{key} {n_rows} {embed_dim} {dtype}".encode()).hexdigest()[:24]
    folder = vectors_dir.absolute() / name
    with storage.locked(folder.parent / f"{name}-being-written"):
        if not _is_whole(folder):
            with storage.replacing_folder(folder) as partial, storage.staged_locally(partial) as local:
                with (local / VECTORS_FILE).open("wb") as stream:  # a full disk is told here: what is mapped cannot
                    os.posix_fallocate(stream.fileno(), 0, n_rows * embed_dim * np.dtype(dtype).itemsize)
                matrix = np.memmap(local / VECTORS_FILE, dtype, "r+", shape=shape)
                fill(matrix)
                matrix.flush()
                digest = storage.hash_file(local / VECTORS_FILE)
                storage.write_file(local / MANIFEST_FILE, json.dumps({"sha256": digest}) + "\n")
    return VectorFile(folder, n_rows, embed_dim, dtype)


def _is_whole(folder: Location) -> bool:
    folder = storage.open_folder(folder)
    try:
        expected = json.loads(storage.read_bytes(folder / MANIFEST_FILE))["sha256"]
        return storage.hash_file(folder / VECTORS_FILE) == expected
    except (OSError, ValueError, KeyError, TypeError):
        return False
