"""Markdown, CSV and figure of the scores."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from PIL import Image

from data_pipeline.records.catalog import Tool
from data_pipeline.records.dialogue import render_answer, render_call, render_dialogue_prompt, render_observation
from data_pipeline.records.schema import AmbiguityType, Modality, ToolRecord, Turn
from model.scoring.dialogues import score_dialogues
from model.scoring.gpt4tools import score_gpt4tools
from model.scoring.intervals import Estimate
from model.scoring.selection import GoldItem, SelectionScores, score_selection
from model.scoring.tables import (
    SELECTION_ROWS,
    plot_scores,
    render_dialogue_markdown,
    render_estimate,
    render_gpt4tools_markdown,
    render_selection_csv,
    render_selection_markdown,
)


@pytest.fixture
def scores() -> SelectionScores:
    gold = [
        GoldItem(frozenset({"a"}), Modality.TEXT, AmbiguityType.NONE, False, False),
        GoldItem(frozenset({"a", "b"}), Modality.IMAGE, AmbiguityType.QUALITY, True, True),
    ]
    return score_selection(gold, [["{'api_name': a}"] * 2, ["{'api_name': x}", "{'api_name': b}"]], ["a", "b"])


def test_estimates_are_in_per_cent_with_their_interval() -> None:
    assert render_estimate(Estimate(0.5, 0.0945, 0.9055)) == "50.00 [9.45, 90.55]"


def test_markdown_has_the_rows_of_the_papers_tables_and_the_rule(scores: SelectionScores) -> None:
    text = render_selection_markdown(scores)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.split("\n") if line.startswith("| ")][2:]
    assert [row[:3] for row in rows] == [
        ["Overall", "5, 7", "2"],
        ["Ambiguity III: Quality", "6", "1"],
        ["Ambiguity: none", "", "1"],
        ["With ambiguity", "6", "1"],
        ["Without ambiguity", "6", "1"],
        ["Image", "8", "1"],
        ["Text", "8", "1"],
        ["One-to-one", "9", "1"],
        ["One-to-many", "9", "1"],
    ]
    assert [cell.split()[0] for cell in rows[0][3:]] == ["50.00", "50.00", "100.00", "75.00"]
    assert "Recall@2 %" in text
    assert "never a hallucination" in text
    assert "Catalogue: 2 names." in text


def test_the_papers_dialogue_metrics_are_named_with_their_rule() -> None:
    use = "Thought: Do I need to use a tool? Yes\nAction: Blur It\nAction Input: image/a.png\nObservation:"
    no_tool = "Thought: Do I need to use a tool? No\nAI: Two birds."
    table = render_gpt4tools_markdown(score_gpt4tools({1: use, 2: no_tool}, {1: use, 2: "junk"}))
    for label in ("SR_t", "SR_act", "SR_args", "SR (all three)", "IoU", "Rule: the released evaluator's"):
        assert label in table
    assert "50.00 [9.45, 90.55]" in table  # SR: Wilson interval of 1 in 2


def test_the_table_of_dialogues_has_a_row_for_each_group_that_there_is() -> None:
    prompt = render_dialogue_prompt([Tool("lab/blur", name="Blur It", usage="it blurs")], "", "go")
    texts = [render_call("Blur It", "image/a.png"), render_answer("Done.")]
    turns = (Turn("assistant", texts[0]), Turn("observation", render_observation("b")), Turn("assistant", texts[1]))
    single = ToolRecord("d0", "test", Modality.TEXT, prompt, ("lab/blur",), turns=turns)
    no_tool = ToolRecord("d1", "test", Modality.TEXT, prompt, ("unknown",), turns=turns[2:])
    table = render_dialogue_markdown(score_dialogues([single, no_tool], [texts, texts[1:]], {"lab/blur"}))
    for words in ("All dialogues", "Seen tools only", "One call", "No tool", "SR_args %", "Rule: "):
        assert words in table
    assert "With an unseen tool" not in table
    assert "Two calls or more" not in table


def test_every_group_has_a_row(scores: SelectionScores) -> None:
    assert set(scores.groups) <= set(SELECTION_ROWS)


def test_csv_reads_back_in_full_precision(scores: SelectionScores) -> None:
    rows = {row["group"]: row for row in csv.DictReader(io.StringIO(render_selection_csv(scores)))}
    assert rows.keys() == scores.groups.keys()
    overall = scores.groups["overall"]
    assert int(rows["overall"]["n"]) == 2
    assert float(rows["overall"]["acc"]) == overall.acc.value
    assert float(rows["overall"]["hallu_high"]) == overall.hallu.high
    assert float(rows["one_to_many"]["recall@2_low"]) == scores.groups["one_to_many"].recall.low


def test_plot_writes_a_picture_and_no_leftover(scores: SelectionScores, tmp_path: Path) -> None:
    plot_scores(scores, tmp_path / "scores.png")
    assert [path.name for path in tmp_path.iterdir()] == ["scores.png"]
    with Image.open(tmp_path / "scores.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > picture.height
        assert len(picture.convert("L").getcolors()) > 10  # more than a blank page
