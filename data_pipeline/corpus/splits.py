"""Divide questions into train, val and test: no medium on two sides, and no tool asked for that training lacks.

MLLM-Tool section 3.3 splits 8:2. Here all questions about one medium (or, for text, with the same words but for case
and spacing) move together, and a group may leave training only if each of its tools is still answered there.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence

from data_pipeline.errors import InputError
from data_pipeline.records.schema import Modality, ToolRecord


def assign_splits(records: Sequence[ToolRecord], test_frac: float, val_frac: float, seed: int) -> list[str]:
    """Choose the split of every record; splits that the source prescribes stand.

    Args:
        records: with `split` either set on all or on none.
        test_frac: share of the questions of each modality that becomes the test split, where none is prescribed.
        val_frac: share of the remaining training questions that becomes the val split, where none is prescribed.
        seed: chooses the groups; the choice does not depend on the order of the records.

    Returns:
        one of `SPLITS` for each record. A split may stay smaller than asked, where tools are too rare to spare.

    Raises:
        InputError: some records have a split and some have none.
    """
    n_prescribed = sum(record.split != "" for record in records)
    if n_prescribed not in (0, len(records)):
        raise InputError(
            f"{n_prescribed} of {len(records)} records prescribe a split and the others do not; give all or none."
        )
    if n_prescribed:
        splits = [record.split for record in records]
    else:
        splits = ["train"] * len(records)
        for index in _choose(records, range(len(records)), test_frac, f"test:{seed}"):
            splits[index] = "test"
    if "val" not in splits:
        training = [index for index, split in enumerate(splits) if split == "train"]
        for index in _choose(records, training, val_frac, f"val:{seed}"):
            splits[index] = "val"
    return splits


def group_key(record: ToolRecord) -> str:
    """What must stay on one side: the medium (by content where it is known), or the words of a text question."""
    if record.modality is Modality.TEXT:
        return "text:" + " ".join(record.instruction.casefold().split())
    return record.media_sha256 or f"{record.modality.value}:{record.media_uri}"


def _choose(records: Sequence[ToolRecord], pool: Sequence[int], frac: float, salt: str) -> list[int]:
    """Indices out of `pool` that leave training: whole groups, in seeded order, up to `frac` of each modality."""
    groups: dict[str, list[int]] = defaultdict(list)
    for index in pool:
        groups[group_key(records[index])].append(index)
    remaining = Counter(tool_id for index in pool for tool_id in records[index].valid_tool_ids)
    sizes = Counter(records[index].modality for index in pool)
    quota = {modality: round(frac * size) for modality, size in sizes.items()}
    chosen: list[int] = []
    for key in sorted(groups, key=lambda key: hashlib.sha256(f"{salt}:{key}".encode()).digest()):
        members = groups[key]
        modality = records[members[0]].modality
        tool_counts = Counter(tool_id for index in members for tool_id in records[index].valid_tool_ids)
        is_spared = all(remaining[tool_id] > count for tool_id, count in tool_counts.items())
        if len(members) <= quota[modality] and is_spared:
            quota[modality] -= len(members)
            remaining -= tool_counts
            chosen += members
    return chosen
