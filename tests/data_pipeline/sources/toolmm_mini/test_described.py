"""ToolMM-mini's described tools as dialogues: whole, solvable from what stands in the prompt, and without leaks."""

from __future__ import annotations

from collections import defaultdict

import pytest

from data_pipeline.errors import InputError
from data_pipeline.records.catalog import UNKNOWN_TOOL_ID
from data_pipeline.records.dialogue import (
    Answer,
    ToolCall,
    parse_dialogue_prompt,
    parse_offered_tools,
    read_observations,
    read_turns,
)
from data_pipeline.records.schema import ToolRecord
from data_pipeline.sources.toolmm_mini import DESCRIBED_SIZES, described_catalog, generate_described
from data_pipeline.sources.toolmm_mini.described import _load_requests
from serve.tools.all_tools import load_tools


@pytest.fixture(scope="module")
def records() -> list[ToolRecord]:
    return list(generate_described("demo"))


def test_counts_and_determinism(records: list[ToolRecord]) -> None:
    size = DESCRIBED_SIZES["demo"]
    assert len(records) == sum(map(sum, (size.single, size.chain, size.failed, size.none)))
    assert len({record.instruction for record in records}) == len(records)
    assert list(generate_described("test")) == list(generate_described("test"))
    assert list(generate_described("test", seed=1)) != list(generate_described("test"))
    with pytest.raises(InputError, match="choose one of demo, test"):
        list(generate_described("huge"))


def test_every_call_names_an_offered_tool_and_a_known_file(records: list[ToolRecord]) -> None:
    catalog = described_catalog()
    for record in records:
        offered = parse_offered_tools(record.instruction)
        assert set(offered) == set(record.candidate_tool_ids)
        steps, results = read_turns(record.turns), read_observations(record.turns)
        calls = [step for step in steps if isinstance(step, ToolCall)]
        assert isinstance(steps[-1], Answer)
        known = [
            word for word in record.instruction.split() if "/" in word and word.endswith((".png.", ".wav.", ".mp4."))
        ]
        files = {word.rstrip(".") for word in known}
        for call, result in zip(calls, results, strict=True):
            assert call.name in offered
            tool = catalog[call.name]
            assert call.arguments in files
            assert call.arguments.startswith(f"{tool.input_modality}/")
            assert offered[call.name] == f"{tool.description} Input: {tool.input_modality}"
            files.add(result.strip())
        assert [call.name for call in calls] == [t for t in record.valid_tool_ids if t != UNKNOWN_TOOL_ID]


def test_dialogues_that_are_offered_the_same_ask_for_different_things(records: list[ToolRecord]) -> None:
    """A few of the training split share their tools; in none of them would another one's tool be right too."""
    always_barred: dict[str, frozenset[str]] = {}  # a tool may be right for several requests
    for request in _load_requests():
        for tool_id in request.right:
            always_barred[tool_id] = always_barred.get(tool_id, request.barred) & request.barred
    groups = defaultdict(list)
    for record in records:
        groups[record.split, record.candidate_tool_ids].append(record)
    sizes = [len(group) for (split, _), group in groups.items() if split == "train"]
    assert max(sizes) <= 4
    assert sum(sizes) / len(sizes) > 3.5
    for (_, offered), group in groups.items():
        for record in group:
            called = set(record.valid_tool_ids) - {UNKNOWN_TOOL_ID}
            for tool_id in called:
                assert not (always_barred[tool_id] & set(offered)) - called


def test_failures_chains_and_refusals_occur(records: list[ToolRecord]) -> None:
    answers = defaultdict(int)
    for record in records:
        last = read_turns(record.turns)[-1]
        assert isinstance(last, Answer)
        failed = any(result.startswith(" The tool failed: ") for result in read_observations(record.turns))
        assert failed == last.text.startswith("That did not work: ")
        assert (len(record.turns) == 1) == (last.text == "None of my tools can do that.")
        answers[len(record.turns), failed] += 1
    size = DESCRIBED_SIZES["demo"]
    assert answers == {
        (1, False): sum(size.none), (3, False): sum(size.single), (3, True): sum(size.failed),
        (5, False): sum(size.chain),
    }  # fmt: skip


def test_wordings_of_a_split_stay_in_it(records: list[ToolRecord]) -> None:
    words = defaultdict(set)
    for record in records:
        words[record.split].add(parse_dialogue_prompt(record.instruction).new_input)
    assert not words["train"] & words["test"]
    assert not words["train"] & words["val"]


def test_the_extra_tools_are_tools_of_the_service() -> None:
    specs = load_tools()
    for tool in described_catalog():
        if tool.tool_id.startswith("local/"):
            assert specs[tool.tool_id].description.startswith(tool.description), tool.tool_id
