"""The longest beginning is found, nobody finds another's, and what is kept stays within its bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from model.decode.kept_prefixes import MIN_TOKENS, KeptPrefix, KeptPrefixes

N = 4 * MIN_TOKENS


def prefix(ids: Any) -> KeptPrefix:
    """8 bytes a token."""
    return KeptPrefix(
        np.asarray(ids, dtype=np.int32), [(torch.zeros(1, 1, len(ids), 1), torch.zeros(1, 1, len(ids), 1))]
    )


def test_the_longest_beginning_is_found() -> None:
    kept = KeptPrefixes(1 << 20)
    whole = np.arange(N, dtype=np.int32)
    other = np.where(np.arange(N) < N // 2, whole, 999)
    kept.put("a", prefix(whole[: MIN_TOKENS * 3]))
    kept.put("a", prefix(other))
    found = kept.find("a", whole)
    assert found is not None
    assert (found[0].ids.tolist(), found[1]) == (whole[: MIN_TOKENS * 3].tolist(), MIN_TOKENS * 3)
    again = kept.find("a", other)
    assert again is not None
    assert again[1] == N - 1, "what stands behind the last token is yet to be computed"
    assert kept.find("b", whole) is None
    assert kept.find("a", whole[:MIN_TOKENS]) is None, "too few to be worth it"
    assert kept.find("a", whole[::-1]) is None
    kept.put("a", prefix(whole))
    assert len(kept) == 2, "its own beginning has gone"
    kept.put("a", prefix(whole[:-3]))
    assert len(kept) == 2, "the longer one has it"
    assert kept.n_bytes == 8 * 2 * N
    kept.clear()
    assert (len(kept), kept.n_bytes, kept.find("a", whole)) == (0, 0, None)


def test_what_was_not_used_for_longest_makes_room() -> None:
    kept = KeptPrefixes(8 * N * 2)
    rows = [np.arange(N) + 1000 * i for i in range(3)]
    kept.put("a", prefix(rows[0]))
    kept.put("a", prefix(rows[1]))
    assert kept.find("a", rows[0]) is not None
    kept.put("a", prefix(rows[2]))
    assert [kept.find("a", row) is not None for row in rows] == [True, False, True]
    kept.put("a", prefix(np.arange(3 * N) + 9000))
    assert (len(kept), kept.n_bytes) == (2, 8 * N * 2), "larger than all that may be kept"
