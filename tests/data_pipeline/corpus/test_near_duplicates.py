"""Near-duplicates against a comparison of every pair by another measure of the same thing."""

from __future__ import annotations

import random
import re
from itertools import combinations

from data_pipeline.corpus.near_duplicates import NEAR, find_near_duplicates
from data_pipeline.records.schema import SPLITS, Modality, ToolRecord

OPENINGS = ("Please", "Could you", "I need somebody to", "Hi, can you", "For my mother:")
TASKS = (
    "tell how many pieces of the green teapot are left in stock",
    "write an invoice for the order of last Tuesday",
    "look up where the parcel with my winter boots is",
    "translate the leaflet about washing wool into Polish",
    "remind the customer of the bill that is still open",
)
NOUNS = ("today", "again", "in Leeds", "for Anna", "by noon", "as soon as you can")


def _record(number: int, split: str, words: str, tool_id: str, media: str = "") -> ToolRecord:
    modality = Modality.IMAGE if media else Modality.TEXT
    return ToolRecord(str(number), "test", modality, words, (tool_id,), media, split=split)


def _pieces(words: str) -> set[str]:
    plain = " ".join(re.sub(r"[^\w]+", " ", words.casefold()).split())
    return {plain[start : start + 5] for start in range(len(plain) - 4)}


def test_every_near_pair_of_a_question_is_told_of_once_a_split() -> None:
    rng = random.Random(0)
    records = [
        _record(
            number,
            SPLITS[min(2, number // 150)],
            f"{rng.choice(OPENINGS)} {rng.choice(TASKS)} {rng.choice(NOUNS)}{rng.choice(('', '.', '?', ' 12'))}",
            f"tool-{rng.randrange(2)}",
            media="a.png" if number % 10 == 0 else "",
        )
        for number in range(300)
    ]
    near: set[tuple[str, str]] = set()  # question -> a split that has a near one before it
    contradictions: set[tuple[str, str]] = set()
    for earlier, record in combinations(records, 2):
        one, other = _pieces(record.instruction), _pieces(earlier.instruction)
        same_words = record.instruction.casefold() == earlier.instruction.casefold()
        if not same_words and record.media_uri == earlier.media_uri and len(one & other) >= NEAR * len(one | other):
            near.add((record.record_id, earlier.split))
            if record.valid_tool_ids != earlier.valid_tool_ids:
                contradictions.add((record.record_id, earlier.split))
    assert len(near) > 150
    by_split = {split: [record for record in records if record.split == split] for split in SPLITS}
    pairs = list(find_near_duplicates(by_split))
    assert {(pair.record.record_id, pair.earlier.split) for pair in pairs} == near
    assert {(p.record.record_id, p.earlier.split) for p in pairs if p.is_contradiction} == contradictions
    for pair in pairs:
        one, other = _pieces(pair.record.instruction), _pieces(pair.earlier.instruction)
        assert abs(pair.similarity - len(one & other) / len(one | other)) < 1e-3, "but for equal CRCs"
