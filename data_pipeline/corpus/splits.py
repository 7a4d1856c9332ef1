"""Divide questions into train, val and test: no medium on two sides, and no tool asked for that training lacks.

MLLM-Tool section 3.3 splits 8:2. Here all questions about one medium (or, for text, with the same words but for case,
spacing and Unicode spelling) move together, whatever source they come from, and a group may leave training only if each
of its tools is still answered there.
"""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np

from data_pipeline.corpus.facts import MODALITIES, NO_SPLIT, Facts, split_code
from data_pipeline.errors import InputError
from data_pipeline.records.catalog import UNKNOWN_TOOL_ID
from data_pipeline.records.schema import SPLITS

TRAIN, VAL, TEST = (split_code(split) for split in SPLITS)


def assign_splits(facts: Facts, test_frac: float, val_frac: float, seed: int, unseen_tools: float = 0.0) -> np.ndarray:
    """Choose the split of every record; splits that a source prescribes stand.

    A question that belongs to a group of which another source prescribes the split goes there (training where it is
    prescribed several ones).

    Args:
        facts: of the records of any number of sources, made with the same seed; in each source, `split` is set on all
            or on none. The seed chooses the groups, in an order that does not depend on that of the records.
        test_frac: share of the questions of each source and modality that becomes the test split, where the source
            prescribes none.
        val_frac: share of the remaining training questions that becomes the val split, where the source prescribes
            none.
        seed: chooses the tools held out.
        unseen_tools: share of the tools that training never sees: all groups in which one of them is right are test.

    Returns:
        int8, the code of one of `SPLITS` for each record. A split may stay smaller than asked, where tools are too rare
        to spare.

    Raises:
        InputError: some records of a source have a split and some have none, or splits are prescribed where tools are
            to be held out.
    """
    prescribed = _prescribed_splits(facts)
    if unseen_tools and any(splits != {NO_SPLIT} for splits in prescribed.values()):
        names = ", ".join(facts.sources[source] for source, splits in prescribed.items() if splits != {NO_SPLIT})
        raise InputError(
            f"prepare.unseen_tools holds tools out of training, but {names} prescribes its splits; set "
            "prepare.resplit=true."
        )
    n_groups = len(facts.val_order)
    settled = np.full(n_groups, NO_SPLIT, np.int8)
    for code in (TEST, VAL, TRAIN):  # training last, so that it wins
        settled[facts.group[facts.split == code]] = code
    is_held_out = _choose_tools(facts, unseen_tools, seed)
    owner = np.repeat(np.arange(len(facts), dtype=np.int32), facts.n_tools)
    settled[facts.group[owner[is_held_out[facts.tools]]]] = TEST
    del owner
    splits = np.where(facts.split != NO_SPLIT, facts.split, settled[facts.group])
    is_free = splits == NO_SPLIT
    splits[is_free] = TRAIN
    splits[_choose(facts, splits, is_free, test_frac, np.arange(n_groups, dtype=np.int32))] = TEST
    has_val = np.array([VAL in prescribed[source] for source in range(len(facts.sources))])
    pool = (splits == TRAIN) & ~has_val[facts.source]
    splits[_choose(facts, splits, pool, val_frac, facts.val_order)] = VAL
    return splits


def _choose_tools(facts: Facts, frac: float, seed: int) -> np.ndarray:
    """Mask of the tools that training is not to see, of those that are right for some record; unknown is no tool."""
    used = {facts.tool_ids[number] for number in np.unique(facts.tools)} - {UNKNOWN_TOOL_ID}
    ordered = sorted(used, key=lambda tool_id: hashlib.sha256(f"unseen:{seed}:{tool_id}".encode()).digest())
    chosen = set(ordered[: round(frac * len(used))])
    return np.array([tool_id in chosen for tool_id in facts.tool_ids])


def _prescribed_splits(facts: Facts) -> dict[int, set[int]]:
    """Source -> the splits that it prescribes, {NO_SPLIT} for none."""
    n_codes = len(SPLITS) + 1
    counts = np.bincount(facts.source.astype(np.int64) * n_codes + facts.split, minlength=len(facts.sources) * n_codes)
    prescribed = {}
    for source, splits in enumerate(counts.reshape(-1, n_codes)):
        if 0 < splits[NO_SPLIT] < splits.sum():
            raise InputError(
                f"{splits.sum() - splits[NO_SPLIT]} of {splits.sum()} records of {facts.sources[source]!r} prescribe a "
                "split and the others do not; give all or none."
            )
        prescribed[source] = set(np.flatnonzero(splits).tolist())
    return prescribed


def _choose(facts: Facts, splits: np.ndarray, pool: np.ndarray, frac: float, order: np.ndarray) -> list[int]:
    """Rows of the pool that leave training: whole groups, in the given order, up to `frac` of each kind of question.

    A group that has training questions outside of the pool stays.
    """
    is_training = splits == TRAIN
    remaining = np.bincount(facts.tools_of(is_training), minlength=len(facts.tool_ids)).tolist()
    kind = facts.source * np.int16(len(MODALITIES)) + facts.modality
    quota = {int(k): round(frac * int(n)) for k, n in zip(*np.unique(kind[pool], return_counts=True), strict=True)}
    n_groups = len(order)
    sizes = np.bincount(facts.group[is_training], minlength=n_groups).astype(np.int32)
    is_movable = sizes == np.bincount(facts.group[pool], minlength=n_groups)
    is_movable &= sizes > 0
    rows = np.flatnonzero(is_training).astype(np.int32)
    rows = rows[np.argsort(facts.group[rows], kind="stable")]  # one group's after the other's
    ends = np.cumsum(sizes, dtype=np.int32)
    left = sum(quota.values())
    chosen: list[int] = []
    for group in order[is_movable[order]]:
        if not left:
            break
        members = rows[ends[group] - sizes[group] : ends[group]].tolist()
        kinds = Counter(kind[members].tolist())
        if any(size > quota[k] for k, size in kinds.items()):
            continue
        asked = Counter(tool for row in members for tool in facts.tools_of_row(row))
        if all(remaining[tool] > count for tool, count in asked.items()):
            for k, size in kinds.items():
                quota[k] -= size
            for tool, count in asked.items():
                remaining[tool] -= count
            left -= len(members)
            chosen += members
    return chosen
