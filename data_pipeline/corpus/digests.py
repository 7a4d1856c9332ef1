"""Identities of 16 bytes each, as arrays: so that what a driver knows of a row takes no Python object.

A digest is the first half of a sha256. Arrays of them are sorted a hash partition at a time, so that the working memory
stays small beside the digests themselves.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa

DIGEST_BYTES = 16
DIGEST = pa.binary(DIGEST_BYTES)
_PARTITION_ROWS = 2**17


def digest_text(text: str) -> bytes:
    """The first 16 bytes of a text's sha256."""
    return hashlib.sha256(text.encode()).digest()[:DIGEST_BYTES]


def to_digests(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """A column of `DIGEST` as uint64 (N, 2) that sort as the bytes do; zeros for null."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):  # of no chunk
        return np.zeros((0, 2), np.uint64)
    filled = array.fill_null(bytes(DIGEST_BYTES)) if array.null_count else array
    data = filled.buffers()[1]
    if data is None or not len(filled):
        return np.zeros((0, 2), np.uint64)
    words = np.frombuffer(data, ">u8", count=2 * len(filled), offset=DIGEST_BYTES * filled.offset)
    return words.astype(np.uint64).reshape(-1, 2)


def number_digests(digests: np.ndarray) -> tuple[np.ndarray, int]:
    """Equal digests get equal numbers, in the order of the digests; zeros, which stand for none, get -1.

    Args:
        digests: uint64 (N, 2).

    Returns:
        int32 (N,), and how many distinct ones there are.
    """
    numbers = np.full(len(digests), -1, np.int32)
    bits = max(0, (len(digests) // _PARTITION_ROWS).bit_length())
    n_distinct = 0
    for partition in range(2**bits):
        rows = _rows_of(digests, partition, bits)
        chosen = digests[rows]
        order = np.lexsort((chosen[:, 1], chosen[:, 0]))
        chosen = chosen[order]
        is_new = np.empty(len(chosen), bool)
        is_new[:1] = True
        np.any(chosen[1:] != chosen[:-1], axis=1, out=is_new[1:])
        numbers[rows[order]] = np.cumsum(is_new) - 1 + n_distinct
        n_distinct += int(is_new.sum())
    return numbers, n_distinct


def _rows_of(digests: np.ndarray, partition: int, bits: int) -> np.ndarray:
    """Rows whose digests begin with these bits and are not zero."""
    is_chosen = digests[:, 0] != 0
    if bits:
        is_chosen &= (digests[:, 0] >> np.uint64(64 - bits)) == np.uint64(partition)
    return np.flatnonzero(is_chosen)


def find_first(numbers: np.ndarray, n_distinct: int) -> np.ndarray:
    """The first row of each number, int32 (n_distinct,); numbers below 0 have none."""
    first = np.zeros(n_distinct, np.int32)
    rows = np.flatnonzero(numbers >= 0).astype(np.int32)[::-1]
    first[numbers[rows]] = rows  # of equal ones the last assignment stands, which is the first row
    return first
