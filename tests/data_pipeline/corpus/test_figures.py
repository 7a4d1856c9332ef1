"""The words that say what a corpus's tools are for, counted and drawn."""

from __future__ import annotations

import io

import numpy as np

from data_pipeline.corpus.facts import Facts
from data_pipeline.corpus.figures import draw_words
from data_pipeline.corpus.stats import count_words
from data_pipeline.records.catalog import Tool, ToolCatalog
from data_pipeline.records.schema import Modality, ToolRecord


def test_words_count_by_the_questions_of_their_tools() -> None:
    tools = [Tool("a/dehaze", "Removes haze, and haze again."), Tool("lab/edge_maps-2"), Tool("unknown", "None fits.")]
    catalog = ToolCatalog([*tools, Tool("unused", "Plays music.")])
    answers = [("a/dehaze",), ("a/dehaze", "lab/edge_maps-2"), ("unknown",)]
    records = [
        ToolRecord(f"r/{n}", "s", Modality.TEXT, f"words {n}", tools, split="train") for n, tools in enumerate(answers)
    ]
    counts = count_words(Facts.of_records(records), catalog)
    assert counts == {"removes": 2, "haze": 2, "and": 2, "again": 2, "edge": 1, "maps": 1}


def draw(words: dict[str, int]) -> np.ndarray:
    pixels = io.BytesIO()
    draw_words(words).savefig(pixels, format="rgba")
    return np.frombuffer(pixels.getvalue(), np.uint8).reshape(-1, 4)


def test_the_same_words_give_the_same_picture() -> None:
    words = {"haze": 30, "edges": 20, "туман": 5}
    drawn = draw(words)
    assert np.array_equal(drawn, draw(words | {"and": 500})), "which says nothing"
    empty = draw({})
    assert (drawn != empty).any(axis=1).mean() > 0.02
    assert np.array_equal(empty, draw({"the": 3}))
