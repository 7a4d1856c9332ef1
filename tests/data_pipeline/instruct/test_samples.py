"""Dialogues made of instructions: they parse as GPT4Tools' do, call what they offer, keep splits and tools apart."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from data_pipeline.instruct.captions import CaptionedImage
from data_pipeline.instruct.instructions import IMAGE, Instruction
from data_pipeline.instruct.samples import Sample, assign_splits, build_samples, count_kinds
from data_pipeline.instruct.talk import Talk
from data_pipeline.records.dialogue import (
    Answer,
    ToolCall,
    find_files,
    has_history,
    parse_dialogue_prompt,
    parse_offered_tools,
    parse_turns,
    read_turns,
)
from data_pipeline.sources.gpt4tools_catalog import GPT4TOOLS_TOOLS

SEEN, UNSEEN = GPT4TOOLS_TOOLS[:23], GPT4TOOLS_TOOLS[23:]
TALK = [Talk("Thank you!", "You are welcome.")]


def instruct(tools: list[int]) -> list[Instruction]:
    return [
        Instruction(
            f"Do number {n} with {IMAGE}",
            GPT4TOOLS_TOOLS[n],
            tuple(IMAGE if name == "image_path" else "a dog" for name in GPT4TOOLS_TOOLS[n].arguments),
        )
        for n in tools
    ]


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    found = []
    for number in range(200):
        image = CaptionedImage(f"{number}.png", f"Caption {number}.")
        pool = np.random.default_rng(number).permutation(23)[:6].tolist()
        split = "val" if number % 10 == 0 else "train"
        found += build_samples(image, number, split, instruct(pool), TALK, SEEN, 5)
    image = CaptionedImage("t.png", "Caption t.")
    found += build_samples(image, 200, "test", instruct([23, 26, 30]), TALK, [*SEEN, *UNSEEN], 5)
    return found


def test_every_sample_is_a_dialogue_that_calls_what_it_offers(samples: list[Sample]) -> None:
    assert len({sample.sample_id for sample in samples}) == len(samples)
    for sample in samples:
        steps = read_turns(parse_turns(sample.output))
        offered = parse_offered_tools(sample.instruction)
        calls = [step for step in steps if isinstance(step, ToolCall)]
        assert tuple(call.name for call in calls) == sample.tools
        assert set(sample.tools) < set(offered)
        if sample.kind == "negative":
            assert steps == [Answer("You are welcome.")]
            continue
        known = find_files(sample.instruction)
        for call in calls:
            files = find_files(call.arguments)
            assert set(files) <= set(known)
            known += find_files(sample.output)
        assert IMAGE not in sample.instruction + sample.output
        assert sample.to_row()["input"] == ""


def test_context_comes_before_the_new_words_and_chains_go_on_with_what_came_out(samples: list[Sample]) -> None:
    by_kind = {kind: [sample for sample in samples if sample.kind == kind] for kind in ("positive", "context", "chain")}
    assert not any(has_history(sample.instruction) for sample in by_kind["positive"])
    assert all(has_history(sample.instruction) for sample in by_kind["context"])
    about_result = 0
    for sample in by_kind["context"]:
        prompt = parse_dialogue_prompt(sample.instruction)
        (named,) = find_files(prompt.new_input)
        about_result += named not in prompt.files
    assert 0 < about_result < len(by_kind["context"])
    for sample in by_kind["chain"]:
        first, observation, second = parse_turns(sample.output)
        (made,) = find_files(observation.text)
        assert made not in first.text
        assert made in second.text


def test_splits_and_tools_stay_apart(samples: list[Sample]) -> None:
    unseen = {tool.call_name for tool in UNSEEN}
    for sample in samples:
        offered = set(parse_offered_tools(sample.instruction))
        assert (sample.split == "test") == bool(unseen & set(sample.tools))
        assert sample.split == "test" or not unseen & offered
    kinds = count_kinds(samples)
    assert kinds["test"] == {"positive": 3}
    assert set(kinds["train"]) == {"positive", "context", "chain", "negative"}
    assert kinds["train"]["positive"] == 6 * 180


def test_pictures_are_dealt_to_splits_by_the_seed() -> None:
    splits = assign_splits(1000, True, 3)
    assert Counter(splits) == {"train": 947, "val": 33, "test": 20}
    assert splits == assign_splits(1000, True, 3) != assign_splits(1000, True, 4)
    assert Counter(assign_splits(3, True, 0)) == {"train": 1, "val": 1, "test": 1}
    assert assign_splits(1, True, 0) == ["train"]
    assert "test" not in assign_splits(50, False, 0)
