"""The growing cache holds what transformers' dynamic one holds, whatever is done to it."""

from __future__ import annotations

import torch
from transformers import DynamicCache

from model.decode.growing_cache import ROOM, GrowingCache

N_LAYERS, N_HEADS, HEAD_DIM = 2, 3, 4


def update_both(mine: GrowingCache, theirs: DynamicCache, n_rows: int, n_columns: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for layer in range(N_LAYERS):
        keys, values = torch.randn(2, n_rows, N_HEADS, n_columns, HEAD_DIM, generator=generator)
        found, expected = mine.update(keys, values, layer), theirs.update(keys.clone(), values.clone(), layer)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert mine.get_seq_length() == theirs.get_seq_length()


def test_it_grows_and_shrinks_as_the_dynamic_one() -> None:
    mine, theirs = GrowingCache(), DynamicCache()
    update_both(mine, theirs, 4, 7, seed=0)
    for step, rows in enumerate(([0, 1, 2, 3], [3, 1, 1], [2, 0])):
        mine.select_rows(rows)
        theirs.batch_select_indices(torch.tensor(rows))
        for more in (5, 1, ROOM + 9):  # within the room, and beyond it
            update_both(mine, theirs, len(rows), more, seed=10 * step + more)


def test_rows_of_another_cache_are_padded_on_the_right() -> None:
    short, long = GrowingCache(), GrowingCache()
    update_both(short, DynamicCache(), 1, 3, seed=1)
    update_both(long, DynamicCache(), 2, 5, seed=2)
    before, appended = [[layer.keys for layer in cache.layers] for cache in (short, long)]
    short.append_rows(long)
    for layer, first, others in zip(short.layers, before, appended, strict=True):
        assert layer.keys is not None
        assert first is not None
        assert layer.keys.shape == (3, N_HEADS, 5, HEAD_DIM)
        assert torch.equal(layer.keys[:1, :, :3], first)
        assert not layer.keys[:1, :, 3:].any()
        assert torch.equal(layer.keys[1:], others)
    update_both(short, _copy(short), 3, 2, seed=3)


def _copy(cache: GrowingCache) -> DynamicCache:
    found = DynamicCache()
    for i, layer in enumerate(cache.layers):
        assert layer.keys is not None
        assert layer.values is not None
        found.update(layer.keys.clone(), layer.values.clone(), i)
    return found
