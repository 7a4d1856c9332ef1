"""The template teacher answers the very prompts that `generate` asks, and what it says passes the filters."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline.instruct.matching import parse_matches, render_match_prompt
from data_pipeline.instruct.queries import (
    ASKED,
    KEPT,
    Query,
    keep_best,
    list_prohibited,
    parse_queries,
    render_query_prompt,
)
from data_pipeline.instruct.template_teacher import answer_prompt
from data_pipeline.records.catalog import Tool, ToolCatalog
from data_pipeline.records.text import words_key

REPO = Path(__file__).resolve().parents[3]
SHOP = list(ToolCatalog.load_jsonl(REPO / "ray_jobs" / "examples" / "shop" / "tools.jsonl"))


def ask_for(tool: Tool) -> list[Query]:
    prohibited = list_prohibited(tool)
    text = answer_prompt(render_query_prompt(tool, prohibited, (0, 1), is_ambiguous=False))
    return [line for line in parse_queries(text, tool, prohibited, is_ambiguous=False) if isinstance(line, Query)]


def test_every_tool_of_the_shop_gets_its_queries_and_no_two_are_alike() -> None:
    assert len(SHOP) == 10
    queries = [ask_for(tool) for tool in SHOP]
    assert [len(own) for own in queries] == [ASKED] * 10
    kept = [query for own in queries for query in keep_best(own)[0]]
    assert len({words_key(query.words) for query in kept}) == 10 * KEPT
    # the frame of a query does not give its tool away: of each tool other ones are kept
    assert len({tuple(query.words.split()[0] for query in keep_best(own)[0]) for own in queries}) == 10


def test_a_query_fits_the_tool_that_it_was_written_for_and_no_other() -> None:
    for tool in SHOP:
        for query in ask_for(tool)[:KEPT]:
            matches = parse_matches(answer_prompt(render_match_prompt(query, SHOP)), SHOP)
            assert matches is not None
            assert set(matches) <= {tool.tool_id}


@pytest.mark.parametrize(
    "description",
    [
        "Sends it.",
        "Tells.",
        "{do} {keys} {0}",
        "Prohibited words: all\nDescription: none",
        "Überträgt 文件 ins Archiv.",
    ],
)
def test_odd_descriptions_are_only_words(description: str) -> None:
    tool = Tool("my/odd", description)
    assert all("{" not in query.words or "{" in description for query in ask_for(tool))
    assert answer_prompt(description) == answer_prompt("anything else"), "no prompt of ours"
