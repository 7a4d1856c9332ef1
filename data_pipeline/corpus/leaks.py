"""Leaks between training and held-out questions: the same question about the same medium, or just the same medium.

The released ToolMMBench has both: a score on leaked items measures memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from data_pipeline.corpus.facts import MODALITIES, Facts, number_columns
from data_pipeline.records.schema import ToolRecord


@dataclass(frozen=True)
class Leaks:
    """Which records leak; masks over all records, true for held-out ones alone.

    Attributes:
        is_exact: the record's (instruction, medium) was seen.
        is_shared: its medium was seen, exact pairs included; never of text.
    """

    is_exact: np.ndarray
    is_shared: np.ndarray

    @property
    def is_leaked(self) -> np.ndarray:
        return self.is_exact | self.is_shared


@dataclass(frozen=True)
class LeakAudit:
    """Ids of held-out records that leak, as `Leaks` has them."""

    exact_pairs: tuple[str, ...]
    shared_media: tuple[str, ...]


def find_leaks(facts: Facts, *comparisons: tuple[np.ndarray, np.ndarray]) -> list[Leaks]:
    """Find every held-out record that leaks from those seen.

    Media are the same if their bytes are (sha256), or their path where a file is not at hand. Instructions are the same
    if their words are (`words_key`): case, spacing and Unicode spelling do not count.

    Args:
        facts: of all records.
        comparisons: each a mask of training records, and those that choose the checkpoint, and one of the records to
            check.

    Returns:
        the leaks of each comparison.
    """
    exact, shared = (
        [_find_common(keys, is_seen) & is_held_out for is_seen, is_held_out in comparisons]
        for keys in (
            number_columns(facts.read, "question", "question_by_path"),
            number_columns(facts.read, "medium", "medium_by_path"),
        )
    )
    return [Leaks(*masks) for masks in zip(exact, shared, strict=True)]


def count_leaks(facts: Facts, leaks: Leaks, is_held_out: np.ndarray, copies: np.ndarray) -> dict[str, dict[str, int]]:
    """Numbers by modality, of those that are held out at all.

    Args:
        copies: int, how often the source holds each record's question.

    Returns:
        "checked", "exact_pairs", "shared_media", and the same as "released_*", where a record counts as often as the
        source repeats its question.
    """
    numbers = {}
    for code, modality in enumerate(MODALITIES):
        checked = is_held_out & (facts.modality == code)
        if checked.any():
            masks = {
                "checked": checked,
                "exact_pairs": checked & leaks.is_exact,
                "shared_media": checked & leaks.is_shared,
            }
            numbers[modality.value] = {key: int(mask.sum()) for key, mask in masks.items()} | {
                f"released_{key}": int(copies[mask].sum()) for key, mask in masks.items()
            }
    return numbers


def audit_leaks(seen: Iterable[ToolRecord], held_out: Iterable[ToolRecord]) -> LeakAudit:
    """`find_leaks` of records that are at hand."""
    seen, held_out = list(seen), list(held_out)
    if not seen or not held_out:
        return LeakAudit((), ())
    facts = Facts.of_records([*seen, *held_out])
    is_seen = np.arange(len(facts)) < len(seen)
    (leaks,) = find_leaks(facts, (is_seen, ~is_seen))
    exact, shared = (
        tuple(record.record_id for record, is_in in zip(held_out, mask[len(seen) :], strict=True) if is_in)
        for mask in (leaks.is_exact, leaks.is_shared)
    )
    return LeakAudit(exact, shared)


def _find_common(numbered: tuple[list[np.ndarray], int], is_seen: np.ndarray) -> np.ndarray:
    """Mask of the records of which a key is a key of one that was seen."""
    keys, n_distinct = numbered
    was_seen = np.zeros(n_distinct + 1, bool)
    for key in keys:
        was_seen[key[is_seen]] = True
    was_seen[-1] = False  # where a key of -1, which is none, has left its mark
    return was_seen[keys[0]] | was_seen[keys[1]]
