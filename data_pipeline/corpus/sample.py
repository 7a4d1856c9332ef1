"""Some of a split's records that stand for all: files are ordered by source, so the first so many do not."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from operator import itemgetter

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


def sample_stream(read: Callable[[], Iterable[ToolRecord]], n: int | None, seed: int) -> list[ToolRecord]:
    """What `sample_records` chooses of records that are read twice and not held; `read` gives them anew each time."""
    if n is None:
        return list(read())
    numbers: dict[Hashable, int] = {}  # of kinds, so that a record costs one reference
    kinds = [numbers.setdefault(kind_of(record), len(numbers)) for record in read()]
    places = set(sample_places(kinds, n, seed))
    return [record for place, record in enumerate(read()) if place in places]


def draw_records(records: Iterable[ToolRecord], n: int, seed: int) -> tuple[list[ToolRecord], int]:
    """At most `n` of a stream of records, each as likely to be drawn as any other; the rest is not held.

    Args:
        records: to draw from, read once.
        n: how many.
        seed: of the draw; the same arguments give the same records.

    Returns:
        the drawn ones in their order, and how many there were; all of them where they are not more than `n`.
    """
    rng = random.Random(seed)
    drawn: list[tuple[int, ToolRecord]] = []
    n_records = 0
    for n_records, record in enumerate(records, start=1):
        if len(drawn) < n:
            drawn.append((n_records, record))
        elif (place := rng.randrange(n_records)) < n:  # reservoir sampling (Vitter 1985)
            drawn[place] = n_records, record
    return [record for _, record in sorted(drawn, key=itemgetter(0))], n_records


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
