"""One query and its further right tools: similar ones are judged, identical ones share."""

from __future__ import annotations

from data_pipeline.instruct.matching import find_similar, parse_matches, render_match_prompt, share_answers
from data_pipeline.instruct.queries import Query
from data_pipeline.records.catalog import Tool

TOOLS = [
    Tool("a", "Makes a picture of words in any style.", "text", "image"),
    Tool("b", "Makes a picture of words in the style of a comic.", "text", "image"),
    Tool("c", "Makes a sound of words in any style.", "text", "audio"),
    Tool("d", "Sums up a long letter.", "text", "image"),
]
QUERY = Query("Draw a masked hero for me", "a", False)


def test_similar_tools_take_and_give_the_same_media() -> None:
    similar = find_similar(TOOLS)
    assert [tool.tool_id for tool in similar["a"]] == ["b"]
    assert similar["c"] == similar["d"] == []


def test_verdicts_are_read_or_none_are() -> None:
    assert "2. Makes a picture of words in the style of a comic." in render_match_prompt(QUERY, TOOLS[:2])
    assert parse_matches("1: yes\n2: No, it names no comic.", TOOLS[:2]) == ["a"]
    assert parse_matches("2) yes\n1. yes", TOOLS[:2]) == ["a", "b"]
    for text in ("1: yes", "1: yes\n1: no", "1: yes\n2: perhaps", "1: yes\n2: no\n3: no", ""):
        assert parse_matches(text, TOOLS[:2]) is None


def test_answers_are_shared_with_tools_of_the_same_function() -> None:
    assert share_answers(QUERY, {"a": ["x"], "b": ["y", "a"]}, ["b"]) == ("a", "x", "b", "y")
    assert share_answers(QUERY, {}, []) == ("a",)
