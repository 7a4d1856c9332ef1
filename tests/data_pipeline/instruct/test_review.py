"""A review that people edit: nothing that was decided is lost, and what they mistyped is told with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_pipeline.errors import InputError
from data_pipeline.instruct.cases import Case
from data_pipeline.instruct.review import Doubt, merge_review, read_review, write_review


def doubt(key: str) -> Doubt:
    return Doubt(Case(key, "", f"words of {key}", "a", ""), "both judges: no")


def test_decisions_survive_and_open_rows_come_and_go(tmp_path: Path) -> None:
    file = tmp_path / "review.jsonl"
    assert read_review(file) == {}
    write_review(file, merge_review({}, [doubt("k1"), doubt("k2"), doubt("k2"), doubt("k3")]))
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [line["key"] for line in lines] == ["k1", "k2", "k3"]
    lines[0] |= {"decision": "drop", "note": "it's dull\u2028so"}
    lines[1] |= {"note": "think of it"}  # begun, not decided
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    known = read_review(file)
    write_review(file, merge_review(known, [doubt("k2"), doubt("k4")]))
    after = {key: decision.line for key, decision in read_review(file).items()}
    assert list(after) == ["k1", "k2", "k4"]
    assert (after["k1"]["decision"], after["k1"]["note"]) == ("drop", "it's dull\u2028so")
    assert after["k2"]["note"] == "think of it"
    assert known["k1"].place.endswith("line 1")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"key": "a", "decision": "maybe"}', "write keep, drop, edit, or nothing"),
        ('{"key": "a", "decision": null}', "decision is no text"),
        ('{"decision": "keep"}', "no object with a `key`"),
        ('{"key": "a"', "not valid JSON"),
        ('{"key": "z", "decision": "keep"}', "has the same key"),
    ],
)
def test_what_was_mistyped_is_told_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "review.jsonl"
    file.write_text('{"key": "z", "decision": "drop"}\n' + text + "\n", encoding="utf-8")
    with pytest.raises(InputError, match="line 2") as caught:
        read_review(file)
    assert said in str(caught.value)
