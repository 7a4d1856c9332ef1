"""Markdown, CSV and figure of the scores."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from PIL import Image

from data_pipeline.records.schema import AmbiguityType, Modality
from model.scoring.intervals import Estimate
from model.scoring.selection import GoldItem, SelectionScores, score_selection
from model.scoring.tables import SELECTION_ROWS, plot_scores, render_estimate, render_table


@pytest.fixture
def scores() -> SelectionScores:
    gold = [
        GoldItem(frozenset({"a"}), Modality.TEXT, AmbiguityType.NONE, False, False),
        GoldItem(frozenset({"a", "b"}), Modality.IMAGE, AmbiguityType.QUALITY, True, True),
    ]
    return score_selection(gold, [["{'api_name': a}"] * 2, ["{'api_name': x}", "{'api_name': b}"]], ["a", "b"])


def test_table_is_aligned_markdown() -> None:
    assert render_table(("Name", "n"), [("long name", "1")]).split("\n") == [
        "| Name      |   n |",
        "| :-------- | --: |",
        "| long name |   1 |",
    ]


def test_estimates_are_in_per_cent_with_their_interval() -> None:
    assert render_estimate(Estimate(0.5, 0.0945, 0.9055)) == "50.00 [9.45, 90.55]"


def test_markdown_has_the_rows_of_the_papers_tables_and_the_rule(scores: SelectionScores) -> None:
    text = scores.to_markdown()
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


def test_every_group_has_a_row(scores: SelectionScores) -> None:
    assert set(scores.groups) <= set(SELECTION_ROWS)


def test_csv_reads_back_in_full_precision(scores: SelectionScores) -> None:
    rows = {row["group"]: row for row in csv.DictReader(io.StringIO(scores.to_csv()))}
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
