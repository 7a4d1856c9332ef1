"""Tools that training never sees: `prepare.unseen_tools`."""

from __future__ import annotations

import pytest

from data_pipeline.corpus.facts import Facts
from data_pipeline.corpus.splits import assign_splits
from data_pipeline.errors import InputError
from data_pipeline.records.schema import SPLITS, Modality, ToolRecord

TOOLS = [f"tool{n}" for n in range(20)]


def build_records(split: str = "") -> list[ToolRecord]:
    """Each tool is right for ten questions; every seventh question has a second right tool, every ninth none."""
    records = []
    for number in range(200):
        tools = [TOOLS[number % 20]]
        if number % 7 == 0:
            tools.append(TOOLS[(number + 3) % 20])
        if number % 9 == 0:
            tools = ["unknown"]
        records.append(ToolRecord(f"r{number}", "made", Modality.TEXT, f"question {number}", tuple(tools), split=split))
    return records


def split_records(
    records: list[ToolRecord], test_frac: float, val_frac: float, seed: int, unseen_tools: float = 0.0
) -> list[str]:
    """The split of each record."""
    codes = assign_splits(Facts.of_records(records, seed), test_frac, val_frac, seed, unseen_tools)
    return [SPLITS[code - 1] for code in codes]


def test_held_out_tools_are_asked_for_in_test_alone() -> None:
    records = build_records()
    splits = split_records(records, 0.2, 0.1, seed=3, unseen_tools=0.25)
    used = {
        split: {
            tool for record, own in zip(records, splits, strict=True) if own == split for tool in record.valid_tool_ids
        }
        for split in ("train", "val", "test")
    }
    unseen = used["test"] - used["train"]
    assert len(unseen) == 5
    assert "unknown" in used["train"]
    assert not unseen & used["val"]
    for record, split in zip(records, splits, strict=True):
        if unseen.intersection(record.valid_tool_ids):
            assert split == "test"
    seen_in_test = [
        split == "test" and not unseen.intersection(record.valid_tool_ids)
        for record, split in zip(records, splits, strict=True)
    ]
    assert 20 <= sum(seen_in_test) <= 35  # and a fifth of all others, as ever
    backwards = split_records(records[::-1], 0.2, 0.1, seed=3, unseen_tools=0.25)
    assert backwards[::-1] == splits
    assert split_records(records, 0.2, 0.1, seed=4, unseen_tools=0.25) != splits


def test_none_are_held_out_by_default() -> None:
    records = build_records()
    splits = split_records(records, 0.2, 0.1, seed=3)
    train = {
        t for record, split in zip(records, splits, strict=True) if split == "train" for t in record.valid_tool_ids
    }
    assert train == {*TOOLS, "unknown"}


def test_prescribed_splits_leave_no_tool_to_hold_out() -> None:
    with pytest.raises(InputError, match=r"made prescribes its splits; set prepare\.resplit=true"):
        split_records(build_records("train"), 0.2, 0.1, seed=3, unseen_tools=0.25)
