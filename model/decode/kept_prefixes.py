"""What dialogues have read, kept in memory: whatever begins alike needs not be read again.

The next turn of a dialogue begins with all that came before it, another dialogue with the same tools' text. Reference:
prefix caching as in vLLM (Kwon et al. 2023, arXiv:2309.06180), here by whole dialogues instead of pages.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from model.decode.growing_cache import Columns
from model.decode.tree_cache import CachedPath, DecodeStats, TreeCache, decoding

MIN_TOKENS = 16  # fewer are quicker read than copied


@dataclass(frozen=True, eq=False)
class KeptPrefix:
    """Tokens that were read, int32 [L], and their keys and values, L columns of each layer."""

    ids: np.ndarray
    columns: Columns

    @property
    def n_bytes(self) -> int:
        return sum(keys.nbytes + values.nbytes for keys, values in self.columns)


class KeptPrefixes:
    """The last ones that were used, as many as find room; for one thread at a time."""

    def __init__(self, max_bytes: int) -> None:
        """`max_bytes`: of keys and values, on the model's device; 0 keeps nothing."""
        self._max_bytes = max_bytes
        self._kept: OrderedDict[int, tuple[Hashable, KeptPrefix]] = OrderedDict()  # by number, the last used last
        self._n_put = 0
        self.n_bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, owner: Hashable, ids: np.ndarray) -> tuple[KeptPrefix, int] | None:
        """The one that shares the longest beginning with a prompt, and how many tokens that is.

        Args:
            owner: whose weights read it.
            ids: int32 [P]. Its last token is never found: what stands behind it is yet to be computed.
        """
        best, longest = None, MIN_TOKENS - 1
        for number, (other, prefix) in self._kept.items():
            if other == owner and (n := min(count_common(prefix.ids, ids), len(ids) - 1)) > longest:
                best, longest = number, n
        if best is None:
            return None
        self._kept.move_to_end(best)
        return self._kept[best][1], longest

    def put(self, owner: Hashable, prefix: KeptPrefix) -> None:
        """Keep one, in place of those that are its beginning, unless it is another's."""
        n_bytes = prefix.n_bytes
        if n_bytes > self._max_bytes:
            return
        for number, (other, kept) in list(self._kept.items()):
            n_common = count_common(kept.ids, prefix.ids) if other == owner else 0
            if n_common == len(kept.ids):
                self._drop(number)
            elif n_common == len(prefix.ids):
                return
        while self.n_bytes + n_bytes > self._max_bytes:
            self._drop(next(iter(self._kept)))
        self._n_put += 1
        self._kept[self._n_put] = (owner, prefix)
        self.n_bytes += n_bytes

    def clear(self) -> None:
        """Forget all: the weights change."""
        self._kept.clear()
        self.n_bytes = 0

    def _drop(self, number: int) -> None:
        _, prefix = self._kept.pop(number)
        self.n_bytes -= prefix.n_bytes


def read_behind(
    mllm: Any, ids: np.ndarray, kept: KeptPrefixes, owner: Hashable
) -> tuple[TreeCache, CachedPath, Tensor, int]:
    """Read a prompt, whose beginning may be known; what is read is kept where it begins like nothing that is.

    Args:
        mllm: a `ToolLLM`.
        ids: int32 [P], without a medium.
        kept: by whose weights it is read: see `KeptPrefixes.find`.
        owner: likewise.

    Returns:
        cache of one row, the prompt's path in it, hidden [1, D] at its end, and how many tokens were known.
    """
    found = kept.find(owner, ids)
    with decoding(mllm):
        cache = TreeCache(mllm, (), np.zeros(0, dtype=np.int32), DecodeStats())
        path = cache.add_row() if found is None else cache.add_row(found[0].columns, found[1])
        n_known = path.length
        ((path,),), hidden = cache.extend([[(path, ids[n_known:])]], is_prompt=True)
        if found is None:
            kept.put(owner, KeptPrefix(ids, cache.copy_path(0, path)))
    return cache, path, hidden, n_known


def count_common(one: np.ndarray, other: np.ndarray) -> int:
    """How many tokens two sequences have in common at their beginnings."""
    n = min(len(one), len(other))
    different = np.flatnonzero(one[:n] != other[:n])
    return int(different[0]) if len(different) else n
