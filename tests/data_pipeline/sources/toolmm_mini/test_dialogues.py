"""ToolMM-mini's dialogues: every kind is there, what is held out stays held out, and the seed decides all."""

from __future__ import annotations

import re
from collections import Counter
from itertools import product

import pytest

from data_pipeline.errors import InputError
from data_pipeline.records.catalog import UNKNOWN_TOOL_ID
from data_pipeline.records.dialogue import Answer, ToolCall, has_history, parse_offered_tools, read_turns
from data_pipeline.records.schema import SPLITS, ToolRecord
from data_pipeline.sources.gpt4tools_catalog import GPT4TOOLS_TOOLS, UNSEEN_TOOL_IDS, find_tool_id
from data_pipeline.sources.toolmm_mini import generate_dialogues
from data_pipeline.sources.toolmm_mini.dialogue_wordings import load_wordings

IMAGE_NAME = re.compile(r"image/[a-z]{4}[0-9][a-z]{3}\.png")
BY_NAME = {tool.name: tool for tool in GPT4TOOLS_TOOLS}
UNSEEN_NAMES = [name for name, tool in BY_NAME.items() if tool.tool_id in UNSEEN_TOOL_IDS and name != "Detection"]


@pytest.fixture(scope="module")
def dialogues() -> list[ToolRecord]:
    return list(generate_dialogues("demo", seed=0))


def _calls(record: ToolRecord) -> list[ToolCall]:
    return [step for step in read_turns(record.turns) if isinstance(step, ToolCall)]


def _new_input(record: ToolRecord) -> str:
    return record.instruction.split("\nNew input: ")[1].removesuffix("\nBegin with a thought.\n")


def test_same_seed_same_records(dialogues: list[ToolRecord]) -> None:
    assert list(generate_dialogues("demo", seed=0)) == dialogues
    others = {record.instruction for record in generate_dialogues("test", seed=1)}
    assert not others & {record.instruction for record in dialogues}
    assert len({record.record_id for record in dialogues}) == len({record.instruction for record in dialogues}) == 1060
    with pytest.raises(InputError, match="no size 'huge'; choose one of demo, test"):
        generate_dialogues("huge")


def test_every_kind_is_there(dialogues: list[ToolRecord]) -> None:
    kinds = Counter((record.split, min(len(_calls(record)), 2)) for record in dialogues)
    assert kinds == Counter(
        {
            ("train", 0): 270,
            ("train", 1): 450,
            ("train", 2): 180,
            ("val", 0): 12,
            ("val", 1): 20,
            ("val", 2): 8,
            ("test", 0): 24,
            ("test", 1): 74,
            ("test", 2): 22,
        }
    )
    for split in SPLITS:
        share = [has_history(record.instruction) for record in dialogues if record.split == split]
        assert 0.2 < sum(share) / len(share) < 0.5
    ends = Counter(isinstance(read_turns(record.turns)[-1], Answer) for record in dialogues if _calls(record))
    assert min(ends.values()) > 0.4 * ends.total(), "answered calls, and calls that end at the observation"


def test_unseen_tools_are_nowhere_in_training(dialogues: list[ToolRecord]) -> None:
    unseen = set(UNSEEN_TOOL_IDS)
    test = [record for record in dialogues if record.split == "test"]
    for record in dialogues:
        if record.split != "test":
            assert unseen.isdisjoint(record.candidate_tool_ids)
            text = record.instruction + "".join(turn.text for turn in record.turns)
            assert not any(name in text for name in UNSEEN_NAMES)
    assert {tool_id for record in test for tool_id in record.valid_tool_ids} >= unseen
    n_unseen = sum(unseen.issuperset(record.valid_tool_ids) for record in test)
    n_seen = sum(unseen.isdisjoint(record.candidate_tool_ids) for record in test)
    assert n_unseen >= 30
    assert n_seen >= 60
    assert n_unseen + n_seen == len(test)
    called = {tool_id for record in dialogues if record.split == "train" for tool_id in record.valid_tool_ids}
    assert called == {tool.tool_id for tool in GPT4TOOLS_TOOLS} - unseen | {UNKNOWN_TOOL_ID}


def test_prompts_offer_a_changing_few_tools_with_the_right_ones(dialogues: list[ToolRecord]) -> None:
    for record in dialogues:
        offered = tuple(find_tool_id(name) for name in parse_offered_tools(record.instruction))
        assert offered == record.candidate_tool_ids
        assert 3 <= len(set(offered)) == len(offered) <= 6
        called = tuple(find_tool_id(call.name) for call in _calls(record))
        assert record.valid_tool_ids == (called or (UNKNOWN_TOOL_ID,))
        assert set(called) <= set(offered)
        assert len(record.instruction.split()) <= 300
    assert len({record.candidate_tool_ids for record in dialogues}) > 0.9 * len(dialogues)
    singles = [record for record in dialogues if len(record.valid_tool_ids) == 1 and _calls(record)]
    positions = Counter(record.candidate_tool_ids.index(record.valid_tool_ids[0]) for record in singles)
    assert min(positions[i] for i in range(3)) > 0.15 * len(singles), "the place of the right tool says nothing"


def test_arguments_come_from_what_was_said(dialogues: list[ToolRecord]) -> None:
    for record in dialogues:
        known = record.instruction
        for call, turn in zip(_calls(record), (*record.turns[1::2], None), strict=False):
            values = call.arguments.split(", ")
            expected = BY_NAME[call.name].arguments
            assert len(values) == len(expected)
            for name, value in zip(expected, values, strict=True):
                assert (IMAGE_NAME.fullmatch(value) is not None) == (name == "image_path")
                assert value in (known if name == "image_path" else _new_input(record)), "nothing to make up"
            known = turn.text if turn is not None else ""  # a second call works on what the first one returned
    chains = [record for record in dialogues if len(record.valid_tool_ids) == 2]
    assert all(_calls(record)[1].arguments.split(", ")[0] in record.turns[1].text for record in chains)


def test_wordings_of_val_and_test_are_never_used_in_training() -> None:
    wordings = load_wordings()
    templates = [entry for entry in wordings.requests.values() if "train" in entry]
    assert len(templates) == 23
    groups = [*templates, wordings.frames, *(talk.wordings for talk in (*wordings.small_talk, *wordings.recall))]
    for group, (split, other) in product(groups, (("train", "val"), ("train", "test"))):
        assert group[split], "every split has wordings of its own"
        assert not set(group[split]) & set(group[other]), (split, other)
    assert {tool_id for tool_id, entry in wordings.requests.items() if "train" not in entry} == set(UNSEEN_TOOL_IDS)


def test_new_inputs_of_test_are_new(dialogues: list[ToolRecord]) -> None:
    asked: dict[str, set[str]] = {split: set() for split in SPLITS}
    for record in dialogues:
        asked[record.split].add(IMAGE_NAME.sub("NAME", _new_input(record)))
    assert not asked["test"] & (asked["train"] | asked["val"])
    assert not asked["val"] & asked["train"]
