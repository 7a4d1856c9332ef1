"""The agent's shortlist: two rankings of the tools that it may call, in turn."""

from __future__ import annotations

from data_pipeline.records.catalog import Tool
from serve.agent.shortlist import shortlist_tools, weigh_inputs

TOOLS = [
    Tool("a/edges", "Draws the edges of a picture."),
    Tool("a/faces", "Finds faces in a picture."),
    Tool("a/tempo", "Estimates the tempo in beats per minute."),
    Tool("a/hum", "Removes mains hum."),
    Tool("a/size", "Tells the size of a picture in pixels."),
]


def test_words_alone_find_the_tools_of_a_chain() -> None:
    assert set(shortlist_tools("draw the edges of it, then tell me its size", TOOLS, 2)) == {"a/edges", "a/size"}


def test_what_only_the_vectors_know_is_on_the_list() -> None:
    by_cards = ["a/hum", "a/tempo", "a/faces", "a/size", "a/edges"]
    assert "a/hum" not in shortlist_tools("the edges sound of bad wiring in this picture", TOOLS, 2)
    assert "a/hum" in shortlist_tools("the edges sound of bad wiring in this picture", TOOLS, 2, by_cards)


def test_without_any_common_word_the_order_stays() -> None:
    assert shortlist_tools("xyzzy", TOOLS, 3) == ["a/edges", "a/faces", "a/tempo"]
    assert len(shortlist_tools("xyzzy", TOOLS, 99)) == len(TOOLS)


def test_probabilities_are_added_up_by_what_tools_take() -> None:
    ranked = [(TOOLS[0], 0.5), (TOOLS[1], 0.25), (TOOLS[2], 0.125), (Tool("unknown"), 0.125)]
    inputs = {"a/edges": "image", "a/faces": "image", "a/tempo": "audio"}
    assert weigh_inputs(ranked, inputs) == {"image": 0.75, "audio": 0.125, "": 0.125}
    assert weigh_inputs([], inputs) == {}
