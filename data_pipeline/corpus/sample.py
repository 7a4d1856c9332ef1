"""Some of a split's records that stand for all: files are ordered by source, so the first so many do not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

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
    if n is None or len(records) <= n:
        return list(records)
    kinds: dict[tuple[str, str, bool], list[int]] = defaultdict(list)
    for number, record in enumerate(records):
        kinds[record.source, str(record.modality), record.ambiguity_type is not None].append(number)
    shares = [n * len(members) / len(records) for members in kinds.values()]
    counts = [int(share) for share in shares]
    rests = sorted(range(len(shares)), key=lambda kind: (counts[kind] - shares[kind], kind))
    for kind in rests[: n - sum(counts)]:
        counts[kind] += 1
    rng = np.random.default_rng(seed)
    chosen = [rng.permutation(members)[:count] for members, count in zip(kinds.values(), counts, strict=True)]
    return [records[number] for number in np.sort(np.concatenate(chosen)).tolist()]
