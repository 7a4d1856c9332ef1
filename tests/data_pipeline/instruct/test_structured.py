"""JSON that a server was made to write becomes the lines that the filters read."""

from __future__ import annotations

import json

import pytest

from data_pipeline.instruct.instructions import IMAGE, Instruction, Noise, parse_reply
from data_pipeline.instruct.queries import Query, Refused, parse_queries
from data_pipeline.instruct.structured import INSTRUCTIONS, QUERIES, to_instruction_lines, to_query_lines
from data_pipeline.records.catalog import Tool
from data_pipeline.sources.gpt4tools_catalog import GPT4TOOLS_TOOLS

POST = Tool("my/post", "Sends letters to customers.")


def test_queries() -> None:
    text = json.dumps({"queries": ["Query1: Please send that letter\nto Anna.", "Which API sends letters?", 7]})
    found = parse_queries(to_query_lines(text), POST, ("API",), is_ambiguous=False)
    assert [line.words for line in found if isinstance(line, Query)] == ["Please send that letter to Anna."]
    assert [line.reason for line in found if isinstance(line, Refused)] == ["prohibited", "length"]


def test_instructions_pass_the_same_filters() -> None:
    rows = [
        {"instruction": "Crop the dog out of it", "tool": "Crop the Given Object", "arguments": [IMAGE, "the dog"]},
        {"instruction": "Crop the dog out of it", "tool": "Crop the Given Object", "arguments": [IMAGE]},
        {"instruction": "Crop the dog out of it", "tool": "Delete Everything", "arguments": ["/etc/passwd"]},
        {"instruction": "Crop the dog out of it", "tool": "Crop the Given Object", "arguments": 5},
        "Crop the dog",
    ]
    found = parse_reply(to_instruction_lines(json.dumps({"instructions": rows})), GPT4TOOLS_TOOLS)
    assert isinstance(found[0], Instruction)
    assert found[0].arguments == (IMAGE, "the dog")
    assert [line.reason for line in found if isinstance(line, Noise)] == ["arguments", "tool", "arguments", "format"]


@pytest.mark.parametrize(
    "text", ["Query1: Send it to Anna.", '{"queries": ["cut sho', '{"queries": 4}', "{" * 5000, "[]"]
)
def test_other_texts_are_as_they_were(text: str) -> None:
    assert to_query_lines(text) == to_instruction_lines(text) == text


def test_schemas_are_strict() -> None:
    """OpenAI's strict mode wants every key required and no other allowed."""
    items = INSTRUCTIONS["properties"]["instructions"]["items"]
    for schema in (QUERIES, INSTRUCTIONS, items):
        assert schema["required"] == list(schema["properties"])
        assert schema["additionalProperties"] is False
