"""The one Markdown table, looked at as text; its form is GitHub Flavored Markdown's, section 4.10."""

from __future__ import annotations

from data_pipeline.markdown import render_table


def test_columns_are_aligned_by_what_they_hold() -> None:
    table = render_table(
        ("Name", "n", "share", "Paper's table"), [("long name", 1, "69.63 [67.20, 71.95]", "5, 7"), ("b", 23, "–", "")]
    )
    assert table.split("\n") == [
        "| Name      |   n |                share | Paper's table |",
        "| :-------- | --: | -------------------: | ------------: |",
        "| long name |   1 | 69.63 [67.20, 71.95] |          5, 7 |",
        "| b         |  23 |                    – |               |",
    ]


def test_a_last_column_of_words_is_as_long_as_it_is() -> None:
    table = render_table(["lr", "status"], [["0.1", "finished"], ["0.2", "failed: " + "x" * 90], ["0.3", "-"]])
    assert table.split("\n") == [
        "| lr  | status |",
        "| :-- | :-- |",
        "| 0.1 | finished |",
        "| 0.2 | failed: " + "x" * 90 + " |",
        "| 0.3 | -   |",
    ]


def test_no_cell_breaks_the_table() -> None:
    table = render_table(["a|b", "c"], [["x\ny", "u|v\r\nw"]])
    assert table.split("\n")[0] == "| a\\|b | c   |"
    assert table.split("\n")[2] == "| x y  | u\\|v w |"


def test_a_table_without_rows_is_its_header() -> None:
    assert render_table(["a", "n"], []).split("\n") == ["| a   |   n |", "| :-- | --: |"]
