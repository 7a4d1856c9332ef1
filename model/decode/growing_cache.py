"""Keys and values of a batch whose rows have lengths of their own and come and go between passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import Cache
from transformers.cache_utils import DynamicLayer

ROOM = 128  # columns that are allocated beyond those in use
Columns = list[tuple[Tensor, Tensor]]  # keys and values [N, H, columns, D] of each layer


@dataclass(frozen=True)
class _Pass:
    """The pass under way: b of the B rows take part.

    Attributes:
        n_rows: B.
        rows: which; a slice where they stand side by side, so that nothing needs to be copied for attention.
        index: int64 [b, 1], the same rows.
        columns: int64 [b, Q], where their new tokens go.
        start, end: columns before the pass and with it, of the longest of these rows.
    """

    n_rows: int
    rows: slice | Tensor
    index: Tensor
    columns: Tensor
    start: int
    end: int

    @property
    def fills_all(self) -> bool:
        return self.start == 0 and len(self.index) == self.n_rows


class GrowingLayer(DynamicLayer):
    """One layer's, with room for further columns: a pass writes its own, where `DynamicLayer` copies all of them.

    Attributes:
        keys, values: [B, H, columns and room, D]; a row's columns behind its length mean nothing.
        current: the pass under way; the cache sets it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.current: _Pass | None = None

    @property
    def states(self) -> tuple[Tensor, Tensor]:
        """Keys and values, once there are any."""
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the pass's columns [b, H, Q, D]; returns keys and values [b, H, end, D] of its rows."""
        now = self.current
        assert now is not None
        if not self.is_initialized and now.fills_all:  # many batches never grow: no room yet
            self._take(key_states, value_states)
            return key_states, value_states
        keys, values = self.reserve(now.n_rows, now.end, (key_states, value_states))
        for storage, states in ((keys, key_states), (values, value_states)):
            storage[now.index, :, now.columns] = states.transpose(1, 2)  # [b, Q, H, D]
        return keys[now.rows, :, : now.end], values[now.rows, :, : now.end]

    def reserve(self, n_rows: int, n_columns: int, like: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        """Make room for so many rows and columns; keys and values `like` [..., H, ..., D] say of which kind."""
        if self.keys is None or self.values is None:
            assert like is not None
            self._take(*(x.new_zeros(n_rows, x.shape[1], n_columns + ROOM, x.shape[3]) for x in like))
        elif self.keys.shape[0] < n_rows or self.keys.shape[2] < n_columns:
            n_columns = self.keys.shape[2] if self.keys.shape[2] >= n_columns else n_columns + ROOM
            self._take(_widen(self.keys, n_rows, n_columns), _widen(self.values, n_rows, n_columns))
        return self.states

    def select(self, rows: Tensor, n_columns: int) -> None:
        """Keep these rows, in this order, and so many of their columns at least."""
        keys, values = self.states
        end = min(keys.shape[2], n_columns + ROOM)
        self._take(keys[rows, :, :end], values[rows, :, :end])

    def copy(self, row: int, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [1, H, N, D] of some columns, int64 [N], of one row."""
        keys, values = (storage[row : row + 1].index_select(2, columns) for storage in self.states)
        return keys, values

    def get_seq_length(self) -> int:
        """Columns before the pass under way."""
        return 0 if self.current is None else self.current.start

    def _take(self, keys: Tensor, values: Tensor) -> None:
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self.keys, self.values = keys, values


class GrowingCache(Cache):
    """A cache of growing layers, as many as the model has.

    Attributes:
        lengths: int64 [B], columns of each row.
    """

    layers: list[GrowingLayer]  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, n_rows: int) -> None:
        """`n_rows` empty ones."""
        super().__init__(layers=[])
        self.lengths = np.zeros(n_rows, dtype=np.int64)
        self._current: _Pass | None = None

    def begin_pass(self, rows: Sequence[int], width: int, device: torch.device) -> None:
        """The next pass reads `width` tokens of each of these rows; what of them is padding, `end_pass` tells."""
        starts, last = self.lengths[list(rows)], rows[0] + len(rows)
        index = torch.tensor(rows, device=device)
        columns = torch.from_numpy(starts[:, None] + np.arange(width)).to(device)
        are_neighbours = list(rows) == list(range(rows[0], last))
        self._current = _Pass(
            n_rows=len(self.lengths),
            rows=slice(rows[0], last) if are_neighbours else index,
            index=index[:, None],
            columns=columns,
            start=int(starts.max()),
            end=int(starts.max()) + width,
        )
        for layer in self.layers:
            layer.current = self._current

    def end_pass(self, rows: Sequence[int], widths: Sequence[int]) -> None:
        """So many tokens of each row were read."""
        self.lengths[list(rows)] += widths

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """See `GrowingLayer.update`."""
        self._add_layers(layer_idx + 1)
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    @property
    def states(self) -> Columns:
        """Each layer's keys and values [B, H, columns, D]; none before the first pass."""
        return [layer.states for layer in self.layers]

    def copy_columns(self, row: int, columns: Tensor) -> Columns:
        """Each layer's keys and values of some columns, int64 [N], of one row."""
        return [layer.copy(row, columns) for layer in self.layers]

    def select_rows(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; a row may be taken several times."""
        self.lengths = self.lengths[list(rows)]
        for layer in self.layers:
            layer.select(torch.tensor(rows, dtype=torch.long, device=layer.device), int(self.lengths.max(initial=0)))

    def append_rows(self, lengths: np.ndarray, states: Columns) -> None:
        """Append rows of these lengths, int64 [N], whose keys and values [N, H, columns, D] are copied.

        `states` is empty for rows that have read nothing.
        """
        n_before, n_rows, n_columns = len(self.lengths), len(self.lengths) + len(lengths), int(lengths.max())
        self._add_layers(len(states))
        for layer, pair in zip_longest(self.layers, states):
            for storage, new in zip(layer.reserve(n_rows, n_columns, pair), pair or (), strict=False):
                storage[n_before:n_rows, :, :n_columns] = new[:, :, :n_columns]
        self.lengths = np.concatenate([self.lengths, lengths])  # last: where memory is short, nothing has changed

    def _add_layers(self, n_layers: int) -> None:
        while len(self.layers) < n_layers:
            self.layers.append(GrowingLayer())
            self.layers[-1].current = self._current


def _widen(states: Tensor, n_rows: int, n_columns: int) -> Tensor:
    """[B, H, columns, D] -> [n_rows, H, n_columns, D], zeros for what is new: what is never seen must be finite."""
    return pad(states, (0, 0, 0, n_columns - states.shape[2], 0, 0, 0, n_rows - states.shape[0]))
