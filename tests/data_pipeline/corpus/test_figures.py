"""The words that say what a corpus's tools are for, counted and drawn."""

from __future__ import annotations

import io

import numpy as np

from data_pipeline.corpus.facts import Facts
from data_pipeline.corpus.figures import draw_topics
from data_pipeline.corpus.stats import count_splits, count_topics, count_words, tabulate_modalities
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


def test_where_tasks_are_known_they_count_in_place_of_words() -> None:
    tools = [
        Tool("a", "Lifts fog.", coarse_functionality="Image-to-Image"),
        Tool("b", "Lifts haze.", coarse_functionality="Image-to-Image"),
        Tool("c", "Hears.", coarse_functionality="Audio-to-Text"),
        Tool("d", "Of no known task."),
    ]
    answers = [("a",), ("a", "b"), ("c",), ("d",)]
    records = [
        ToolRecord(f"r/{n}", "s", Modality.TEXT, f"words {n}", tools, split="test") for n, tools in enumerate(answers)
    ]
    counts = count_topics(Facts.of_records(records), ToolCatalog(tools))
    assert list(counts.items()) == [("Image-to-Image", 3), ("Audio-to-Text", 1)]
    plain = ToolCatalog(Tool(tool.tool_id, tool.description) for tool in tools)
    assert count_topics(Facts.of_records(records), plain)["lifts"] == 3


def test_the_papers_table_of_modalities() -> None:
    kinds = [("train", ("a", "b", "c")), ("train", ("a",)), ("val", ("a", "b")), ("test", ("b", "c"))]
    records = [
        ToolRecord(f"r/{n}", "s", Modality.VIDEO, "words", tools, media_uri=f"{n}.mp4", split=split)
        for n, (split, tools) in enumerate(kinds)
    ] + [ToolRecord("r/t", "s", Modality.TEXT, "words", ("a", "b"), split="train")]
    header, rows = tabulate_modalities(count_splits(Facts.of_records(records)))
    table = {
        row[0].partition(",")[0] + str(n): dict(zip(header[1:], row[1:], strict=True)) for n, row in enumerate(rows)
    }
    assert {name: (own["text"], own["video"], own["image"]) for name, own in table.items()} == {
        "training0": (2, 4, 0),
        "training1": (1, 2, 0),
        "validation2": (0, 1, 0),
        "test3": (0, 1, 0),
    }


def draw(words: dict[str, int]) -> np.ndarray:
    pixels = io.BytesIO()
    draw_topics(words).savefig(pixels, format="rgba")
    return np.frombuffer(pixels.getvalue(), np.uint8).reshape(-1, 4)


def test_the_same_words_give_the_same_picture() -> None:
    words = {"haze": 30, "edges": 20, "туман": 5}
    drawn = draw(words)
    assert np.array_equal(drawn, draw(words | {"and": 500})), "which says nothing"
    empty = draw({})
    assert (drawn != empty).any(axis=1).mean() > 0.02
    assert np.array_equal(empty, draw({"the": 3}))
