"""Each row of the growing cache holds what transformers' dynamic one holds of it alone, whatever is done to it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import DynamicCache

from model.decode.growing_cache import ROOM, GrowingCache

N_LAYERS, N_HEADS, HEAD_DIM = 2, 3, 4
CPU = torch.device("cpu")


class Both:
    """A growing cache, and a dynamic one for each of its rows."""

    def __init__(self, n_rows: int) -> None:
        self.mine = GrowingCache(n_rows)
        self.theirs = [DynamicCache() for _ in range(n_rows)]
        self._generator = torch.Generator().manual_seed(n_rows)

    def read(self, rows: Sequence[int], widths: Sequence[int]) -> None:
        """One pass; what stands behind a row's width is padding."""
        width = max(widths)
        self.mine.begin_pass(rows, width, CPU)
        before = self.mine.get_seq_length()
        assert before == (max(self.mine.lengths[list(rows)]) if self.mine.layers else 0)
        for layer in range(N_LAYERS):
            new = torch.randn(2, len(rows), N_HEADS, width, HEAD_DIM, generator=self._generator)
            found = self.mine.update(*new.clone(), layer)
            assert found[0].shape[2] == before + width
            for i, (row, n) in enumerate(zip(rows, widths, strict=True)):
                expected = self.theirs[row].update(*new[:, i : i + 1, :, :n], layer)
                for mine, theirs in zip(found, expected, strict=True):
                    assert torch.equal(mine[i : i + 1, :, : theirs.shape[2]], theirs)
        self.mine.end_pass(rows, widths)
        self.check()

    def select(self, rows: Sequence[int]) -> None:
        self.mine.select_rows(rows)
        self.theirs = [_copy(self.theirs[row]) for row in rows]
        self.check()

    def check(self) -> None:
        assert self.mine.lengths.tolist() == [row.get_seq_length() for row in self.theirs]
        for number, row in enumerate(self.theirs):
            columns = self.mine.copy_columns(number, torch.arange(row.get_seq_length()))
            for (keys, values), layer in zip(columns, row.layers, strict=False):
                assert layer.keys is not None
                assert layer.values is not None
                assert torch.equal(keys, layer.keys)
                assert torch.equal(values, layer.values)


def test_rows_grow_come_and_go_by_themselves() -> None:
    both = Both(4)
    both.read([0, 1, 2, 3], [7, 2, 7, 5])
    for rows in ([0, 1, 2, 3], [3, 1, 1], [2, 0]):
        both.select(rows)
        everyone = range(len(rows))
        both.read(everyone, [5 - i for i in everyone])
        both.read([len(rows) - 1], [3])
        both.read([len(rows) - 1, 0], [2, 1])  # no neighbours in this order
        both.read(everyone, [1] * len(rows))
        both.read([0], [ROOM + 9])  # beyond the room
    longest = int(both.mine.lengths.max())
    both.read([1], [4 * ROOM])
    both.select([0])
    assert all(layer.states[0].shape[2] <= longest + ROOM for layer in both.mine.layers), (
        "the long one's memory is free"
    )


def test_rows_of_another_cache_are_appended() -> None:
    short, long = Both(1), Both(2)
    short.read([0], [3])
    long.read([0, 1], [5, 4])
    short.mine.append_rows(long.mine.lengths, long.mine.states)
    short.theirs += long.theirs
    short.check()
    short.mine.append_rows(np.array([2]), long.mine.copy_columns(1, torch.arange(4)))  # a beginning
    beginning = DynamicCache()
    for layer, (keys, values) in enumerate(long.mine.copy_columns(1, torch.arange(2))):
        beginning.update(keys, values, layer)
    short.theirs.append(beginning)
    short.mine.append_rows(np.array([0]), [])
    short.theirs.append(DynamicCache())
    short.check()
    short.read([4, 3, 0], [2, 6, 1])
    short.read(range(5), [1, 2, 3, 4, 5])


def test_rows_may_be_read_one_after_the_other() -> None:
    both = Both(0)
    for number, width in enumerate((3, 6, 2)):
        both.mine.append_rows(np.array([0]), [])
        both.theirs.append(DynamicCache())
        both.read([number], [width])
    both.mine.append_rows(np.array([0]), [])
    both.theirs.append(DynamicCache())
    both.select([3, 1])
    both.read([0, 1], [4, 1])


def _copy(cache: DynamicCache) -> DynamicCache:
    found = DynamicCache()
    for i, layer in enumerate(cache.layers):
        assert layer.keys is not None
        assert layer.values is not None
        found.update(layer.keys.clone(), layer.values.clone(), i)
    return found
