"""Divide questions into train, val and test: no medium on two sides, and no tool asked for that training lacks.

MLLM-Tool section 3.3 splits 8:2. Here all questions about one medium (or, for text, with the same words but for case,
spacing and Unicode spelling) move together, whatever source they come from, and a group may leave training only if each
of its tools is still answered there.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence

from data_pipeline.errors import InputError
from data_pipeline.records.catalog import UNKNOWN_TOOL_ID
from data_pipeline.records.keys import group_key
from data_pipeline.records.schema import SPLITS, ToolRecord


def assign_splits(
    records: Sequence[ToolRecord], test_frac: float, val_frac: float, seed: int, unseen_tools: float = 0.0
) -> list[str]:
    """Choose the split of every record; splits that a source prescribes stand.

    A question that belongs to a group of which another source prescribes the split goes there (training where it is
    prescribed several ones).

    Args:
        records: of any number of sources; in each, `split` is set on all or on none.
        test_frac: share of the questions of each source and modality that becomes the test split, where the source
            prescribes none.
        val_frac: share of the remaining training questions that becomes the val split, where the source prescribes
            none.
        seed: chooses the groups and the tools held out; the choice does not depend on the order of the records.
        unseen_tools: share of the tools that training never sees: all groups in which one of them is right are test.

    Returns:
        one of `SPLITS` for each record. A split may stay smaller than asked, where tools are too rare to spare.

    Raises:
        InputError: some records of a source have a split and some have none, or splits are prescribed where tools are
            to be held out.
    """
    prescribed = _prescribed_splits(records)
    if unseen_tools and any(splits != {""} for splits in prescribed.values()):
        names = ", ".join(source for source, splits in prescribed.items() if splits != {""})
        raise InputError(
            f"prepare.unseen_tools holds tools out of training, but {names} prescribes its splits; set "
            "prepare.resplit=true."
        )
    keys = [group_key(record) for record in records]
    settled: dict[str, str] = {}
    for split in reversed(SPLITS):  # training last, so that it wins
        settled |= {key: split for key, record in zip(keys, records, strict=True) if record.split == split}
    held_out = _choose_tools(records, unseen_tools, seed)
    unseen = {key for key, record in zip(keys, records, strict=True) if held_out.intersection(record.valid_tool_ids)}
    settled |= dict.fromkeys(unseen, "test")
    splits = [record.split or settled.get(key, "train") for key, record in zip(keys, records, strict=True)]
    free = [i for i, record in enumerate(records) if not record.split and keys[i] not in settled]
    for index in _choose(records, keys, splits, free, test_frac, f"test:{seed}"):
        splits[index] = "test"
    training = [i for i, split in enumerate(splits) if split == "train" and "val" not in prescribed[records[i].source]]
    for index in _choose(records, keys, splits, training, val_frac, f"val:{seed}"):
        splits[index] = "val"
    return splits


def _choose_tools(records: Sequence[ToolRecord], frac: float, seed: int) -> set[str]:
    """The tools that training is not to see, out of those that are right for some record; "none of them" is no tool."""
    tools = {tool_id for record in records for tool_id in record.valid_tool_ids} - {UNKNOWN_TOOL_ID}
    ordered = sorted(tools, key=lambda tool_id: hashlib.sha256(f"unseen:{seed}:{tool_id}".encode()).digest())
    return set(ordered[: round(frac * len(tools))])


def _prescribed_splits(records: Sequence[ToolRecord]) -> dict[str, set[str]]:
    """Source -> the splits that it prescribes, {""} for none."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        counts[record.source][record.split] += 1
    for source, splits in counts.items():
        if 0 < splits[""] < splits.total():
            raise InputError(
                f"{splits.total() - splits['']} of {splits.total()} records of {source!r} prescribe a split and the "
                "others do not; give all or none."
            )
    return {source: set(+splits) for source, splits in counts.items()}


def _choose(
    records: Sequence[ToolRecord],
    keys: Sequence[str],
    splits: Sequence[str],
    pool: Sequence[int],
    frac: float,
    salt: str,
) -> list[int]:
    """Indices out of `pool` that leave training: whole groups, in seeded order, up to `frac` of each kind of question.

    A group that has training questions outside of the pool stays.
    """
    training = [index for index, split in enumerate(splits) if split == "train"]
    groups: dict[str, list[int]] = defaultdict(list)
    for index in training:
        groups[keys[index]].append(index)
    remaining = Counter(tool_id for index in training for tool_id in records[index].valid_tool_ids)
    kinds = [(record.source, record.modality) for record in records]
    quota = {kind: round(frac * size) for kind, size in Counter(kinds[index] for index in pool).items()}
    movable = set(pool)
    chosen: list[int] = []
    for key in sorted(groups, key=lambda key: hashlib.sha256(f"{salt}:{key}".encode()).digest()):
        members = groups[key]
        if not movable.issuperset(members):
            continue
        sizes = Counter(kinds[index] for index in members)
        tool_counts = Counter(tool_id for index in members for tool_id in records[index].valid_tool_ids)
        has_room = all(size <= quota[kind] for kind, size in sizes.items())
        if has_room and all(remaining[tool_id] > count for tool_id, count in tool_counts.items()):
            for kind, size in sizes.items():
                quota[kind] -= size
            remaining -= tool_counts
            chosen += members
    return chosen
