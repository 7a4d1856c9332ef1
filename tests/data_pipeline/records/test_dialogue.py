"""GPT4Tools' protocol: what is rendered is parsed back, responses fall into turns without loss, malformed ones show."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from data_pipeline.errors import InputError
from data_pipeline.records.catalog import Tool
from data_pipeline.records.dialogue import (
    FILE_NAME,
    TURN_STOP,
    Answer,
    DialoguePrompt,
    ToolCall,
    check_turn_order,
    count_calls,
    find_files,
    has_history,
    parse_dialogue_prompt,
    parse_offered_tools,
    parse_turn,
    parse_turns,
    read_observations,
    read_turns,
    rename_files,
    render_answer,
    render_call,
    render_dialogue_prompt,
    render_exchange,
    render_image_note,
    render_observation,
)
from data_pipeline.records.schema import ASSISTANT, OBSERVATION, Turn

THOUGHT = "Thought: Do I need to use a tool?"
CALL = f"{THOUGHT} Yes\nAction: Crop It\nAction Input: image/a.png, the dog\nObservation:"
ANSWER = f"{THOUGHT} No\nAI: It is done."
NOTE = render_image_note("image/a.png", "a dog.")


def test_gold_texts_of_the_oracle_fall_into_turns_and_join_again(shared_dir: Path) -> None:
    lines = (shared_dir / "oracle/gpt4tools/cases.jsonl").read_text(encoding="utf-8").splitlines()
    cases = [json.loads(line) for line in lines]
    malformed = set()
    for case in cases:
        turns = parse_turns(case["gold"])
        assert "".join(turn.text for turn in turns) == case["gold"]
        try:
            steps = read_turns(turns)
        except InputError:
            malformed.add(case["gold"])
            continue
        calls = [step for step in steps if isinstance(step, ToolCall)]
        assert len(calls) == case["gold"].count("Action: ")
        assert all(step.name in case["gold"] and step.arguments in case["gold"] for step in calls)
        assert isinstance(steps[-1], Answer) == ("AI: " in case["gold"])
    assert malformed == {"AI: It is a photo of two birds.", f"{THOUGHT} Yes\nAction: Get Photo Description"}


def test_a_response_falls_into_alternating_turns() -> None:
    output = CALL + render_observation("image/b.png") + CALL + "\nObservation: done\n" + ANSWER
    assert parse_turns(output) == (
        Turn(ASSISTANT, CALL),
        Turn(OBSERVATION, " image/b.png\n"),
        Turn(ASSISTANT, CALL),
        Turn(OBSERVATION, "\nObservation: done\n"),
        Turn(ASSISTANT, ANSWER),
    )
    assert parse_turns(CALL) == (Turn(ASSISTANT, CALL),)
    assert parse_turns("") == ()


def test_what_is_rendered_is_parsed_back() -> None:
    assert render_call("Crop It", "image/a.png, the dog") == CALL
    assert CALL.endswith(TURN_STOP)
    assert parse_turn(CALL) == ToolCall("Crop It", "image/a.png, the dog")
    assert parse_turn(render_answer("It is done.")) == Answer("It is done.")
    assert parse_turn(f"\n{ANSWER}\n\nTwo\nlines ") == Answer("It is done.\n\nTwo\nlines")
    assert parse_turn(CALL.replace("Yes", "Yes  ")) == parse_turn(CALL), "the evaluator strips thoughts too"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "It is done.",
        "AI: It is done.",
        CALL.removesuffix(TURN_STOP),  # cut off by the limit on tokens
        CALL + " image/b.png",
        CALL + CALL,
        CALL.replace("Yes", "No"),
        CALL.replace("Yes", "yes"),
        CALL.replace("Yes", "Maybe"),
        CALL.replace("Action: Crop It", "Action: "),
        CALL.replace("Action Input: image/a.png, the dog", ""),
        CALL.replace("the dog", "the\ndog"),
        ANSWER.replace("No", "Yes"),
        ANSWER.replace("It is done.", " "),
        ANSWER + "\n" + CALL,
        f"{THOUGHT} No AI: It is done.",
    ],
)
def test_malformed_turns_are_none(text: str) -> None:
    assert parse_turn(text) is None


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ((), "no turn"),
        ((Turn(ASSISTANT, CALL), Turn(OBSERVATION, " x\n")), "do not go assistant, observation"),
        ((Turn(OBSERVATION, " x\n"),), "do not go assistant, observation"),
        ((Turn(ASSISTANT, "Hello."),), "neither a tool call nor an answer"),
        ((Turn(ASSISTANT, ANSWER), Turn(OBSERVATION, " x\n"), Turn(ASSISTANT, CALL)), "only the last turn may answer"),
    ],
)
def test_turns_that_are_no_dialogue_are_refused(turns: tuple[Turn, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_turns(turns)


def test_a_prompt_offers_its_tools_and_nothing_else() -> None:
    tools = [Tool("g/crop", name="Crop It", usage="to crop. Input: image_path, object"), Tool("plain", "Says hello.")]
    history = NOTE + "\n" + render_exchange("> Fake: a tool. It should be one of [Fake].", "No.")
    prompt = render_dialogue_prompt(tools, history, "> Another: tool")
    assert parse_offered_tools(prompt) == {
        "Crop It": "to crop. Input: image_path, object",
        "plain": "Says hello.",
    }
    assert "should be one of [Crop It, plain]\n" in prompt
    assert history in prompt
    assert "New input: > Another: tool\n" in prompt
    fixed_words = render_dialogue_prompt([Tool("t")], "", "").split()
    assert len(fixed_words) < 110, "long prompts cost every step of training"
    assert parse_offered_tools("should be one of [A B, C]") == {"A B": "", "C": ""}, "released lists may hold more"


def test_an_image_note_is_no_earlier_turn() -> None:
    tools = [Tool("t")]
    assert not has_history(render_dialogue_prompt(tools, "", "Hi. AI: no reply"))
    assert not has_history(render_dialogue_prompt(tools, NOTE, "Hi."))
    assert has_history(render_dialogue_prompt(tools, NOTE + "\n" + render_exchange("Hi.", "Hello."), "Crop it."))
    earlier_call = render_dialogue_prompt(tools, NOTE, "Crop it.") + CALL + " image/b.png\n"
    assert has_history(earlier_call), "released prompts hold the earlier calls of a chain"


def test_a_prompt_is_taken_apart_again() -> None:
    notes = [render_image_note("image/a.png", "a cat: on a mat."), render_image_note("image/b.png", "")]
    history = "\n".join([notes[0], render_exchange("Hello there", "Good day."), notes[1]])
    prompt = parse_dialogue_prompt(
        render_dialogue_prompt([Tool("t", usage="to do it")], history, "What is in image/a.png?")
    )
    assert prompt.files == {"image/a.png": "a cat: on a mat.", "image/b.png": ""}
    assert prompt.exchanges == (("Hello there", "Good day."),)
    assert prompt.new_input == "What is in image/a.png?"
    assert parse_dialogue_prompt(render_dialogue_prompt([Tool("t", usage="x")], "", "Hi")) == DialoguePrompt(
        {}, (), "Hi"
    )
    with pytest.raises(InputError, match="has no 'Previous conversation:'"):
        parse_dialogue_prompt("What is this?")


def test_exchanges_of_several_lines_are_whole() -> None:
    history = "\n".join(
        [
            render_exchange("Two\nlines", "One\n\n- and\n- a list"),
            render_image_note("image/scan.tif", "a page\nof two lines"),
            render_image_note("image/scan.tiff", ""),
            render_exchange("Next", ""),
        ]
    )
    prompt = parse_dialogue_prompt(render_dialogue_prompt([Tool("t", usage="x")], history, "Do\nboth."))
    assert prompt.exchanges == (("Two\nlines", "One\n\n- and\n- a list"), ("Next", ""))
    assert prompt.files == {"image/scan.tif": "a page\nof two lines", "image/scan.tiff": ""}
    assert prompt.new_input == "Do\nboth."
    noted = render_dialogue_prompt([Tool("t")], render_exchange("Hi", "Received.\nAnd more."), "Go")
    assert has_history(noted), "more than the reply to a picture"


def test_the_new_words_are_kept_in_a_prompt_that_ends_otherwise() -> None:
    prompt = parse_dialogue_prompt("Previous conversation:\n\nNew input: Crop it.\nThought:")
    assert prompt.new_input == "Crop it.\nThought:"


def test_a_description_takes_one_line_of_a_prompt() -> None:
    prompt = render_dialogue_prompt([Tool("a", "Says\nAction: b"), Tool("b", "Sings.")], "", "Go")
    assert parse_offered_tools(prompt) == {"a": "Says Action: b", "b": "Sings."}


def test_observations_and_calls_are_told_by_their_roles() -> None:
    turns = (Turn(ASSISTANT, CALL), Turn(OBSERVATION, " image/b.png\n"), Turn(ASSISTANT, ANSWER))
    assert read_observations(turns) == [" image/b.png\n"]
    assert (count_calls(turns), count_calls(turns[2:])) == (1, 0)
    check_turn_order(turns)
    for wrong in ((), turns[:2], turns[1:], (Turn("user", "x"),)):
        with pytest.raises(InputError, match="do not go assistant, observation"):
            check_turn_order(wrong)


def test_files_are_found_as_their_pattern_finds_them() -> None:
    """What begins at the slash, for speed, and what `FILE_NAME` says agree wherever names touch or are none."""
    parts = ["image", "audio", "video/", "/", ".", "a", "-", "png", " ", "_", "é", "image/a.png"]
    rng = random.Random(0)
    texts = ["".join(rng.choices(parts, k=rng.randrange(12))) for _ in range(3000)]
    texts.append("image/a.image/b.png")
    names = {"image/a.png": "image/1.png"}
    for text in texts:
        assert find_files(text) == list(dict.fromkeys(found[0] for found in FILE_NAME.finditer(text))), text
        assert rename_files(text, names) == FILE_NAME.sub(lambda found: names.get(found[0], found[0]), text), text
    assert sum(bool(find_files(text)) for text in texts) > 500


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("Previous conversation:\n\nNew input: Crop it\nBegin with a thought.\n", "Crop it"),
        ("Say Previous conversation: x\nPrevious conversation:\nNew input: Crop it", "Crop it"),
        ("Previous conversation:\nPrevious conversation:\nNew input: a\nNew input: b", "a\nNew input: b"),
        ("New input: a\nPrevious conversation:\n", None),
        ("Previous conversation: New input: a", None),
        ("", None),
    ],
)
def test_a_prompt_is_cut_at_the_lines_that_begin_so(prompt: str, words: str | None) -> None:
    if words is None:
        with pytest.raises(InputError, match="has no 'Previous conversation:'"):
            parse_dialogue_prompt(prompt)
    else:
        assert parse_dialogue_prompt(prompt).new_input == words
