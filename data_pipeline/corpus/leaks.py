"""Leaks between training and held-out questions: the same question about the same medium, or just the same medium.

The released ToolMMBench has both: a score on leaked items measures memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from data_pipeline.records.keys import media_keys, question_keys
from data_pipeline.records.schema import Modality, ToolRecord


@dataclass(frozen=True)
class LeakAudit:
    """Result of comparing held-out records with those seen in training.

    Attributes:
        exact_pairs: ids of held-out records whose (instruction, medium) was seen.
        shared_media: ids of held-out records whose medium was seen, exact pairs included; never of text.
        by_modality: numbers by modality: "checked", "exact_pairs", "shared_media", and the same as "released_*", where
            a record counts as often as the source repeats its question.
    """

    exact_pairs: tuple[str, ...]
    shared_media: tuple[str, ...]
    by_modality: dict[str, dict[str, int]]

    @property
    def leaked_ids(self) -> frozenset[str]:
        return frozenset(self.exact_pairs) | frozenset(self.shared_media)


def audit_leaks(
    seen: Iterable[ToolRecord], held_out: Iterable[ToolRecord], copies: Mapping[str, int] | None = None
) -> LeakAudit:
    """Find every held-out record that leaks from `seen`.

    Media are the same if their bytes are (sha256), or their path where a file is not at hand. Instructions are the same
    if their words are (`words_key`): case, spacing and Unicode spelling do not count.

    Args:
        seen: training records, and those that choose the checkpoint.
        held_out: records to check.
        copies: how often the source holds a record's question, by record id; 1 where absent.
    """
    media: set[str] = set()
    pairs: set[tuple[str, str]] = set()
    for record in seen:
        media.update(media_keys(record))
        pairs.update(question_keys(record))
    exact: list[str] = []
    shared: list[str] = []
    numbers: dict[str, Counter[str]] = {modality.value: Counter() for modality in Modality}
    for record in held_out:
        is_exact = not pairs.isdisjoint(question_keys(record))
        is_shared = not media.isdisjoint(media_keys(record))
        exact += [record.record_id] if is_exact else []
        shared += [record.record_id] if is_shared else []
        for prefix, count in (("", 1), ("released_", (copies or {}).get(record.record_id, 1))):
            counts = {"checked": count, "exact_pairs": count * is_exact, "shared_media": count * is_shared}
            numbers[record.modality.value].update({prefix + key: number for key, number in counts.items()})
    by_modality = {modality: dict(counter) for modality, counter in numbers.items() if counter}
    return LeakAudit(tuple(exact), tuple(shared), by_modality)
