"""Some of a split's records that stand for all: files are ordered by source, so the first so many do not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np

from data_pipeline.records.schema import ToolRecord


def sample_records(records: Sequence[ToolRecord], n: int | None, seed: int) -> list[ToolRecord]:
    """At most `n` records, of every kind about its share: source, modality, and whether the words alone decide.

    Args:
        records: to choose from.
        n: how many; None = all.
        seed: of the draw; the same arguments give the same records.

    Returns:
        the chosen ones in their order. Each kind has its share of `n` rounded down, and of the largest rests one more.
    """
    return [records[number] for number in sample_places([kind_of(record) for record in records], n, seed)]


def kind_of(record: ToolRecord) -> Hashable:
    """What a sample has a share of."""
    return record.source, str(record.modality), record.ambiguity_type is not None


def sample_places(kinds: Sequence[Hashable], n: int | None, seed: int) -> list[int]:
    """What `sample_records` chooses of records of these kinds, as their places: for records that are not at hand."""
    if n is None or len(kinds) <= n:
        return list(range(len(kinds)))
    members_of: dict[Hashable, list[int]] = defaultdict(list)
    for number, kind in enumerate(kinds):
        members_of[kind].append(number)
    shares = [n * len(members) / len(kinds) for members in members_of.values()]
    counts = [int(share) for share in shares]
    rests = sorted(range(len(shares)), key=lambda kind: (counts[kind] - shares[kind], kind))
    for kind in rests[: n - sum(counts)]:
        counts[kind] += 1
    rng = np.random.default_rng(seed)
    chosen = [rng.permutation(members)[:count] for members, count in zip(members_of.values(), counts, strict=True)]
    return np.sort(np.concatenate(chosen)).tolist()
