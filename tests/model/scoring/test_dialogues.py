"""Scores of dialogues: every group, the paper's metrics, and turns that are faulty."""

from __future__ import annotations

from dataclasses import replace

import pytest

from data_pipeline.errors import InputError
from data_pipeline.records.catalog import Tool
from data_pipeline.records.dialogue import render_answer, render_call, render_dialogue_prompt, render_observation
from data_pipeline.records.schema import Modality, ToolRecord, Turn
from model.scoring.dialogues import called_tool_ids, join_gold, join_turns, score_dialogues
from model.scoring.gpt4tools import score_item
from model.scoring.tables import render_dialogue_markdown

FIND = Tool("lab/find", name="Find It", usage="it finds")
BLUR = Tool("lab/blur", name="Blur It", usage="it blurs")
PROMPT = render_dialogue_prompt([FIND, BLUR], "", "go")
FIND_CALL, BLUR_CALL = render_call("Find It", "image/a.png"), render_call("Blur It", "image/b.png")
ANSWER = render_answer("Done.")
SEEN = {"lab/find"}


def build_record(number: int, texts: list[str], tool_ids: tuple[str, ...]) -> ToolRecord:
    turns = [Turn("assistant", texts[0])]
    for text in texts[1:]:
        turns += [Turn("observation", render_observation("image/b.png")), Turn("assistant", text)]
    return ToolRecord(f"d{number}", "test", Modality.TEXT, PROMPT, tool_ids, turns=tuple(turns))


SINGLE = build_record(0, [FIND_CALL, ANSWER], ("lab/find",))
CHAIN = build_record(1, [FIND_CALL, BLUR_CALL, ANSWER], ("lab/find", "lab/blur"))
NO_TOOL = build_record(2, [ANSWER], ("unknown",))
CALL_ALONE = build_record(3, [FIND_CALL], ("lab/find",))
RECORDS = [SINGLE, CHAIN, NO_TOOL, CALL_ALONE]
PERFECT = [[turn.text for turn in record.turns[::2]] for record in RECORDS]


def test_perfect_dialogues_in_every_group() -> None:
    scores = score_dialogues(RECORDS, PERFECT, SEEN)
    counts = {name: (group.n, group.n_turns) for name, group in scores.groups.items()}
    assert counts == {
        "all": (4, 7),
        "seen": (3, 4),
        "unseen": (1, 3),
        "single": (2, 3),
        "chain": (1, 3),
        "no_tool": (1, 1),
    }
    for group in scores.to_json().values():
        assert (group["sr_t"], group["sr_act"], group["sr"], group["malformed_frac"]) == (1, 1, 1, 0)
        assert group["sr_args"] == pytest.approx(1)
    assert scores.responses == [join_gold(record.turns) for record in RECORDS]
    assert scores.headline() == scores.to_json()["all"]
    assert set(score_dialogues(RECORDS[:1], PERFECT[:1], SEEN).groups) == {"all", "seen", "single"}


def test_several_sources_are_told_apart() -> None:
    other = [replace(record, record_id=f"o{i}", source="other") for i, record in enumerate(RECORDS)]
    scores = score_dialogues([*RECORDS, *other], PERFECT + [[FIND_CALL]] * len(other), SEEN)
    by_source = {name: group.n for name, group in scores.groups.items() if name.startswith("source:")}
    assert by_source == {
        "source:test": 4, "source:test/seen": 3, "source:test/unseen": 1,
        "source:other": 4, "source:other/seen": 3, "source:other/unseen": 1,
    }  # fmt: skip
    assert scores.groups["source:test"].means["sr"].value == 1
    assert scores.groups["source:other"].means["sr"].value == 0.5, "of two dialogues that is the only call"
    assert "| other/unseen" in render_dialogue_markdown(scores)


def test_faulty_turns_are_counted_by_turn() -> None:
    responses = [
        [FIND_CALL, "AI: no thought"],
        [FIND_CALL, render_call("Paint It", "image/b.png"), ANSWER],
        ["###"],
        [render_call("find it", "image/a.png")],  # names are compared to the letter
    ]
    scores = score_dialogues(RECORDS, responses, SEEN)
    overall = scores.groups["all"]
    assert overall.n_turns == 7
    assert overall.malformed.value == pytest.approx(2 / 7)
    assert overall.invented.value == pytest.approx(2 / 7)
    assert overall.malformed.low < 2 / 7 < overall.malformed.high
    assert scores.groups["chain"].malformed.value == 0
    assert scores.groups["chain"].invented.value == pytest.approx(1 / 3)
    assert scores.groups["chain"].means["sr_act"].value == pytest.approx(1 / 2)
    assert scores.groups["no_tool"].means["sr"].value == 0
    assert scores.groups["all"].means["sr"].value == pytest.approx(1 / 4)


def test_items_are_those_of_the_files_scorer() -> None:
    responses = [[BLUR_CALL, ANSWER], [FIND_CALL, ANSWER], [FIND_CALL], [FIND_CALL]]
    scores = score_dialogues(RECORDS, responses, SEEN)
    for record, response, item in zip(RECORDS, scores.responses, scores.items, strict=True):
        assert item == score_item(join_gold(record.turns), response)
    assert scores.items[0].action == 0
    assert scores.items[1].action == 0.5


def test_turns_are_joined_by_the_records_observations() -> None:
    assert join_turns(CHAIN.turns, [FIND_CALL, BLUR_CALL]) == f"{FIND_CALL} image/b.png\n{BLUR_CALL}"
    assert join_turns(NO_TOOL.turns, ["x"]) == "x"


def test_called_tools_are_those_of_dialogues() -> None:
    question = ToolRecord("q", "test", Modality.TEXT, "blur this", ("lab/other",))
    assert called_tool_ids([CHAIN, SINGLE, question]) == {"lab/find", "lab/blur"}


def test_faults_are_named() -> None:
    with pytest.raises(InputError, match="no dialogue to score"):
        score_dialogues([], [], SEEN)
    with pytest.raises(InputError, match="1 responses for 4 dialogues"):
        score_dialogues(RECORDS, PERFECT[:1], SEEN)
