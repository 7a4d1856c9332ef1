"""Keys and values of a batch whose rows grow by a few columns in every pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import Cache
from transformers.cache_utils import DynamicLayer

ROOM = 128  # columns that are allocated beyond those in use


class GrowingLayer(DynamicLayer):
    """One layer's, with room for further columns: a pass writes its own, where `DynamicLayer` copies all of them.

    Attributes:
        keys, values: [B, H, columns, D], views of a larger storage once they have grown.
    """

    _storage: tuple[Tensor, Tensor] | None = None  # of keys and values: [B, H, columns + room, D]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append columns [B, H, Q, D]; returns keys and values with them."""
        start = self.get_seq_length()
        end = start + key_states.shape[2]
        if start == 0:  # many batches never grow: no room yet
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states, value_states
            return self.keys, self.values
        if self._storage is None or self._storage[0].shape[2] < end:
            self._storage = (_widen(self.keys, end + ROOM), _widen(self.values, end + ROOM))
        for storage, states in zip(self._storage, (key_states, value_states), strict=True):
            storage[:, :, start:end] = states
        self.keys, self.values = (storage[:, :, :end] for storage in self._storage)
        return self.keys, self.values

    def load(self, keys: Tensor, values: Tensor) -> None:
        """Begin with columns [B, H, columns, D] that were computed before; they are copied."""
        n_columns = keys.shape[2]
        self.lazy_initialization(keys, values)
        self._storage = (_widen(keys, n_columns + ROOM), _widen(values, n_columns + ROOM))
        self.keys, self.values = (storage[:, :, :n_columns] for storage in self._storage)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows, in this order."""
        if self._storage is None:
            super().batch_select_indices(indices)
            return
        end = self.get_seq_length()
        self._storage = (self._storage[0][indices], self._storage[1][indices])
        self.keys, self.values = (storage[:, :, :end] for storage in self._storage)

    def append_rows(self, other: GrowingLayer) -> None:
        """Append another batch's rows; the shorter ones are padded on the right."""
        n_columns = max(self.get_seq_length(), other.get_seq_length())
        self._storage = None
        self.keys = torch.cat([_widen(self.keys, n_columns), _widen(other.keys, n_columns)])
        self.values = torch.cat([_widen(self.values, n_columns), _widen(other.values, n_columns)])


class GrowingCache(Cache):
    """A cache of growing layers, as many as the model has."""

    layers: list[GrowingLayer]  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=GrowingLayer)

    @classmethod
    def load(cls, layers: Sequence[tuple[Tensor, Tensor]]) -> GrowingCache:
        """A cache that begins with each layer's keys and values [B, H, columns, D]; they are copied."""
        cache = cls()
        for keys, values in layers:
            layer = GrowingLayer()
            layer.load(keys, values)
            cache.layers.append(layer)
        return cache

    def copy_columns(self, columns: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Each layer's keys and values [1, H, N, D] of some columns, int64 [N], of the first row."""
        pairs = []
        for layer in self.layers:
            assert layer.keys is not None
            assert layer.values is not None
            pairs.append((layer.keys[:1].index_select(2, columns), layer.values[:1].index_select(2, columns)))
        return pairs

    def select_rows(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; a row may be taken several times."""
        self.batch_select_indices(torch.tensor(rows, dtype=torch.long, device=self.layers[0].device))

    def append_rows(self, other: GrowingCache) -> None:
        """Append another cache's rows; the shorter ones are padded on the right."""
        for mine, others in zip(self.layers, other.layers, strict=True):
            mine.append_rows(others)


def _widen(states: Tensor | None, n_columns: int) -> Tensor:
    """[B, H, columns, D] -> [B, H, n_columns, D], zeros on the right."""
    assert states is not None  # they hold the prompts
    return pad(states, (0, 0, 0, n_columns - states.shape[2]))
