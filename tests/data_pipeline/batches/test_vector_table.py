"""Media vectors in one mapped file: exact in both dtypes, written once, and not taken if damaged."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.batches.vector_table import MANIFEST_FILE, VECTORS_FILE, VectorFile, VectorTable, write_vectors
from data_pipeline.locations import locate

SHAPE = (5, 3)  # N, E


def _vectors(dtype: str) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(SHAPE).astype(dtype)


def _write(folder: Path | str, dtype: str = "float32", key: str = "media") -> VectorFile:
    return write_vectors(locate(folder), key, SHAPE, dtype, lambda matrix: np.copyto(matrix, _vectors(dtype)))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_rows_are_exact_and_stay_as_they_are_stored(tmp_path: Path, dtype: str) -> None:
    file = _write(tmp_path, dtype)
    table = VectorTable(file)
    assert table.matrix.dtype == dtype
    (written,) = tmp_path.glob(f"*/{VECTORS_FILE}")
    assert written.stat().st_size == 15 * np.dtype(dtype).itemsize
    for _ in range(2):  # also after its memory was given back
        found = table.take([4, 0, 4])
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, _vectors(dtype)[[4, 0, 4]].astype(np.float32))
        table.release()
    assert table.take([]).shape == (0, 3)


def test_a_corpus_without_vectors_needs_no_file(tmp_path: Path) -> None:
    file = write_vectors(tmp_path, "none", (0, 3), "float16", lambda matrix: pytest.fail("nothing to fill"))
    assert not list(tmp_path.iterdir())
    assert VectorTable(file).take(np.zeros(0, np.int64)).shape == (0, 3)


def test_the_same_is_written_once_and_anew_where_it_is_damaged(tmp_path: Path) -> None:
    first = _write(tmp_path)
    (folder,) = tmp_path.iterdir()

    def refuse(matrix: np.ndarray) -> None:
        raise AssertionError("it is there")

    assert write_vectors(tmp_path, "media", SHAPE, "float32", refuse) == first
    others = [_write(tmp_path, key="other media"), _write(tmp_path, "float16")]
    assert len({file.folder for file in (first, *others)}) == 3
    for name in (VECTORS_FILE, MANIFEST_FILE):
        damaged = folder / name
        damaged.write_bytes(damaged.read_bytes()[:-2])
        with pytest.raises(AssertionError, match="it is there"):
            write_vectors(tmp_path, "media", SHAPE, "float32", refuse)
        assert _write(tmp_path) == first
        np.testing.assert_array_equal(VectorTable(first).matrix, _vectors("float32"))


def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "posix_fallocate", fail)
    with pytest.raises(OSError, match="No space left"):
        _write(tmp_path / "vectors")
    assert not list((tmp_path / "vectors").rglob("*.bin"))


def test_in_a_bucket(bucket: str) -> None:
    file = _write(f"{bucket}/run/vectors", "float16")
    np.testing.assert_array_equal(VectorTable(file).matrix, _vectors("float16"))
    assert _write(f"{bucket}/run/vectors", "float16") == file
