"""Splits and the leak audit, on made-up records and against the counts of the released files."""

from __future__ import annotations

import unicodedata
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.corpus.facts import Facts
from data_pipeline.corpus.leaks import audit_leaks, count_leaks, find_leaks
from data_pipeline.errors import InputError
from data_pipeline.records.keys import group_key
from data_pipeline.records.schema import Modality, ToolRecord
from data_pipeline.sources.read import read_source
from tests.data_pipeline.corpus.test_splits import split_records


def _record(number: int, *tool_ids: str, **fields: object) -> ToolRecord:
    values = {"modality": Modality.IMAGE, "instruction": f"question {number}", "media_uri": f"{number}.png"} | fields
    return ToolRecord(record_id=str(number), source="test", valid_tool_ids=tool_ids or ("a",), **values)  # type: ignore[arg-type]


def test_released_leaks_are_found(shared_dir: Path) -> None:
    reading = read_source("toolmmbench", shared_dir / "toolmmbench")
    records = [item for item in reading if isinstance(item, ToolRecord)]
    copies = [1 + len(reading.merged_source_indexes.get(record.source_index or -1, [])) for record in records]
    facts, is_test = Facts.of_records(records), np.array([record.split == "test" for record in records])
    (leaks,) = find_leaks(facts, (~is_test, is_test))
    by_modality = count_leaks(facts, leaks, is_test, np.array(copies))
    # Counted by a plain loop over the released rows: 29 of 98 audio and 2 of 13 video test rows repeat a (file, query)
    # pair of a training row; 60 and 4 use a file that is in the training data. One audio row repeats another test row.
    assert by_modality["audio"] == {
        "checked": 97,
        "exact_pairs": 29,
        "shared_media": 59,
        "released_checked": 98,
        "released_exact_pairs": 29,
        "released_shared_media": 60,
    }
    assert by_modality["video"] == {
        "checked": 13,
        "exact_pairs": 2,
        "shared_media": 4,
        "released_checked": 13,
        "released_exact_pairs": 2,
        "released_shared_media": 4,
    }
    assert by_modality["text"]["exact_pairs"] == by_modality["image"]["shared_media"] == 0


def test_audit_compares_content_where_it_is_known() -> None:
    seen = [_record(0, media_sha256="s0"), _record(1), _record(2, modality=Modality.TEXT, media_uri="")]
    held_out = [
        _record(10, media_uri="copy.png", media_sha256="s0", instruction="question 0"),  # the same bytes elsewhere
        _record(11, media_uri="copy.png", media_sha256="s0"),
        _record(12, media_uri="1.png", media_sha256="s1", instruction="question 1"),  # only here is the file at hand
        _record(13, instruction="question 0"),  # the same words about another medium: no leak
        _record(14, modality=Modality.TEXT, media_uri="", instruction="question 2"),
        _record(15, modality=Modality.TEXT, media_uri="", instruction="question 1"),  # a text is no medium
        _record(16, modality=Modality.VIDEO, media_uri="1.png"),  # another modality
    ]
    audit = audit_leaks(seen, held_out)
    assert audit.exact_pairs == ("10", "12", "14")
    assert audit.shared_media == ("10", "11", "12")


def test_words_are_compared_without_case_spacing_and_unicode_spelling() -> None:
    words = ["Make IT  sharp", unicodedata.normalize("NFC", "Wo ist das Größte?"), "other"]
    again = ["make it sharp", unicodedata.normalize("NFD", "wo ist DAS größte? "), "others"]
    seen = [_record(i, modality=Modality.TEXT, media_uri="", instruction=text) for i, text in enumerate(words)]
    held_out = [_record(10 + i, modality=Modality.TEXT, media_uri="", instruction=text) for i, text in enumerate(again)]
    assert audit_leaks(seen, held_out).exact_pairs == ("10", "11")
    seen = [_record(i, media_uri="a.png", instruction=text) for i, text in enumerate(words)]
    held_out = [_record(10 + i, media_uri="a.png", instruction=text) for i, text in enumerate(again)]
    assert audit_leaks(seen, held_out).exact_pairs == ("10", "11")


@pytest.fixture
def records() -> list[ToolRecord]:
    """300 questions about 100 pictures (two files hold the same bytes), 100 texts, a tail of rare tools."""
    pictures = [
        _record(i, f"tool{i % 7}", media_uri=f"{i % 100}.png", media_sha256=f"s{i % 100 % 99}") for i in range(300)
    ]
    texts = [
        _record(300 + i, f"text{i % 5}", modality=Modality.TEXT, media_uri="", instruction=f"Say  {i // 2}")
        for i in range(100)
    ]
    rare = [_record(400 + i, f"rare{i}") for i in range(20)]
    return pictures + texts + rare


def test_split_keeps_media_and_words_together_and_every_tool_in_training(records: list[ToolRecord]) -> None:
    splits = split_records(records, test_frac=0.2, val_frac=0.1, seed=3)
    sides: dict[str, set[str]] = {}
    for record, split in zip(records, splits, strict=True):
        sides.setdefault(group_key(record), set()).add(split)
    assert all(len(side) == 1 for side in sides.values())
    used = {
        split: {tool for record, s in zip(records, splits, strict=True) if s == split for tool in record.valid_tool_ids}
        for split in ("train", "val", "test")
    }
    assert used["test"] <= used["train"]
    assert used["val"] <= used["train"]
    assert {f"rare{i}" for i in range(20)} <= used["train"]
    counts = Counter((record.modality, split) for record, split in zip(records, splits, strict=True))
    assert 55 <= counts[Modality.IMAGE, "test"] <= 64
    assert counts[Modality.TEXT, "test"] == 20
    held_out = [record for record, split in zip(records, splits, strict=True) if split != "train"]
    training = [record for record, split in zip(records, splits, strict=True) if split == "train"]
    audit = audit_leaks(training, held_out)
    assert not audit.exact_pairs + audit.shared_media


def test_split_depends_on_seed_and_content_not_on_order(records: list[ToolRecord]) -> None:
    splits = split_records(records, 0.2, 0.1, seed=3)
    backwards = split_records(records[::-1], 0.2, 0.1, seed=3)
    assert backwards[::-1] == splits
    assert split_records(records, 0.2, 0.1, seed=4) != splits


def test_prescribed_splits_stand_and_val_is_carved(records: list[ToolRecord]) -> None:
    prescribed = [replace(r, split="test" if i % 10 == 0 else "train") for i, r in enumerate(records)]
    splits = split_records(prescribed, 0.5, 0.1, seed=0)
    assert [s == "test" for s in splits] == [r.split == "test" for r in prescribed]
    assert 20 <= splits.count("val") <= 38
    with_val = [replace(r, split="val" if i % 10 == 1 else r.split) for i, r in enumerate(prescribed)]
    assert split_records(with_val, 0.5, 0.1, seed=0) == [r.split for r in with_val]
    with pytest.raises(InputError, match="prescribe a split"):
        split_records([*prescribed, records[0]], 0.2, 0.1, seed=0)


def test_no_words_stand_on_two_sides_whatever_their_sources(records: list[ToolRecord]) -> None:
    again = [
        replace(record, record_id=f"b{record.record_id}", source="other", instruction=record.instruction.upper() + " ")
        for record in records
    ]
    both = records + again
    splits = split_records(both, 0.2, 0.1, seed=3)
    held_out, training = (
        [record for record, split in zip(both, splits, strict=True) if (split == "test") is is_test]
        for is_test in (True, False)
    )
    audit = audit_leaks(training, held_out)
    assert not audit.exact_pairs + audit.shared_media
    for source in ("test", "other"):
        texts = [s for r, s in zip(both, splits, strict=True) if r.source == source and r.modality is Modality.TEXT]
        assert 15 <= texts.count("test") <= 20, "each source has its share"


def test_what_a_source_prescribes_settles_the_others(records: list[ToolRecord]) -> None:
    """A question that another source has in its test split may not be trained on."""
    prescribed = [replace(r, split=("train", "val", "test")[i % 3]) for i, r in enumerate(records[300:400:2])]
    free = [replace(r, record_id=f"b{r.record_id}", source="other") for r in records]
    splits = split_records([*free, *prescribed], 0.2, 0.1, seed=3)
    by_words = {group_key(record): record.split for record in prescribed}
    settled = [(by_words[group_key(r)], s) for r, s in zip(free, splits, strict=False) if group_key(r) in by_words]
    assert len(settled) == 100
    assert all(wanted == got for wanted, got in settled if wanted != "train")
    assert all(got == "train" for wanted, got in settled if wanted == "train"), "its val split is prescribed"
    assert splits[len(free) :] == [record.split for record in prescribed]
    with pytest.raises(InputError, match="1 of 2 records of 'test' prescribe a split"):
        split_records([prescribed[0], replace(prescribed[1], split=""), *free], 0.2, 0.1, seed=0)
