"""Groups that the teacher proposes: who is asked about whom, what is read, and which pairs come together."""

from __future__ import annotations

import pytest

from data_pipeline.instruct.group_proposals import (
    N_CANDIDATES,
    build_groups,
    list_candidates,
    parse_differences,
    render_group_prompt,
    render_media_prompt,
)
from data_pipeline.instruct.groups import AMBIGUITIES
from data_pipeline.instruct.matching import parse_matches
from data_pipeline.records.catalog import Tool
from data_pipeline.records.schema import Modality

RAIN = Tool("rain", "Removes rain from a picture.", "image", "image")
HAZE = Tool("haze", "Removes haze from a picture.", "image", "image")
ROOMS = Tool("rooms", "Segments furniture.", "image", "image", coarse_functionality="Image Segmentation")
SCANS = Tool("scans", "Finds organs.", "image", "image", coarse_functionality="image segmentation")
COUNT = Tool("count", "Counts what a picture shows of rain.", "image", "text")
LETTER = Tool("letter", "Removes rain from a letter.", "text", "text")
TOOLS = [RAIN, HAZE, ROOMS, SCANS, COUNT, LETTER]


def test_tools_of_like_words_or_one_task_are_candidates() -> None:
    found = {tool: [other.tool_id for other in others] for tool, others in list_candidates(TOOLS, {}).items()}
    assert found == {"rain": ["haze"], "haze": ["rain"], "rooms": ["scans"], "scans": ["rooms"]}
    known = list_candidates(TOOLS, {"rain": ["haze"], "haze": ["rain"]})
    assert known.keys() == {"rooms", "scans"}, "what is known is not asked"
    assert list_candidates([RAIN, LETTER], {}) == {}
    many = [Tool(f"t{n}", f"Does {n}.", "image", "image", coarse_functionality="Task") for n in range(20)]
    assert {len(others) for others in list_candidates(many, {}).values()} == {N_CANDIDATES}


def test_a_prompt_explains_every_word_that_is_read() -> None:
    prompt = render_group_prompt(RAIN, [HAZE, ROOMS])
    assert "2. Segments furniture." in prompt
    assert "attaches a picture" in prompt
    for word in ("same", *AMBIGUITIES, "no"):
        assert f"\n{word}: " in prompt
        assert parse_differences(f"1: {word}\n2) {word.upper()}, I think.", [HAZE, ROOMS]) == {
            "haze": word,
            "rooms": word,
        }


@pytest.mark.parametrize("text", ["", "1: same", "1: same\n1: no", "1: alike\n2: no", "1: no\n2: no\n3: no"])
def test_an_answer_in_another_form_says_nothing(text: str) -> None:
    assert parse_differences(text, [HAZE, ROOMS]) is None


def test_a_pair_belongs_together_where_both_answers_say_so() -> None:
    groups = build_groups(
        {
            "a": {"b": "quality", "c": "quality", "d": "same"},
            "b": {"a": "quality", "c": "no"},
            "c": {"a": "quality", "b": "quality"},
            "d": {"a": "same"},
            "e": {"f": "domains"},
            "f": {"e": "categories"},
            "g": {"h": "others"},
        },
        {},
    )
    assert groups.to_rows() == [
        {"tools": ["a", "d"]},
        {"tools": ["a", "b", "d"], "ambiguity": "quality"},
        {"tools": ["e", "f"], "ambiguity": "domains"},
    ], "c and b are apart by one answer, so c stays out; h was not asked"


def test_what_is_known_stays_and_brings_its_tools_along() -> None:
    groups = build_groups({"a": {"b": "conditions"}, "b": {"a": "conditions"}}, {"b": ["c"], "c": ["b"], "x": ["y"]})
    assert groups.same == {"b": ("c",), "c": ("b",), "x": ("y",)} | {"y": ("x",)}
    assert groups.ambiguous.keys() == {"a", "b", "c"}


def test_a_file_is_judged_for_the_tools_of_a_group() -> None:
    prompt = render_media_prompt("A street\nin the rain.", Modality.IMAGE, [RAIN, HAZE])
    assert "What it is: A street in the rain.\n" in prompt
    assert parse_matches("1: yes\n2: no", [RAIN, HAZE]) == ["rain"]
