"""The GPT4Tools scorer against the released evaluator's values and hand-made cases."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_pipeline.errors import InputError
from model.scoring.gpt4tools import METRIC_NAMES, compute_bleu1, score_gpt4tools, score_item

USE = "Thought: Do I need to use a tool? Yes\nAction: Edge Detection On Image\nAction Input: image/a.png\nObservation:"
CLOSE = "\nThought: Do I need to use a tool? No\nAI: Done."
NO_TOOL = "Thought: Do I need to use a tool? No\nAI: Two birds."


def read_cases(shared_dir: Path) -> list[dict]:
    lines = (shared_dir / "oracle/gpt4tools/cases.jsonl").read_text().split("\n")
    return [json.loads(line) for line in lines if line]


def test_every_item_equals_the_released_evaluator(shared_dir: Path) -> None:
    cases = read_cases(shared_dir)
    assert len(cases) == 72
    for case in cases:
        score = score_item(case["gold"], case["pred"])
        for name in METRIC_NAMES:
            assert getattr(score, name) == pytest.approx(case[name], abs=1e-9), (case["id"], name)


def test_means_equal_the_released_evaluator(shared_dir: Path) -> None:
    cases = read_cases(shared_dir)
    scores = score_gpt4tools({c["id"]: c["gold"] for c in cases}, {c["id"]: c["pred"] for c in cases})
    expected = json.loads((shared_dir / "oracle/gpt4tools/aggregate.json").read_text())["aggregate"]
    assert scores.to_json() == pytest.approx(expected, abs=1e-9)
    for name, estimate in scores.means.items():
        assert estimate.low < expected[name] < estimate.high


def test_bleu1_equals_pycocoevalcap(shared_dir: Path) -> None:
    table = json.loads((shared_dir / "oracle/gpt4tools/aggregate.json").read_text())["bleu1"]
    assert len(table) > 10
    for row in table:
        assert compute_bleu1(row["gold"], row["pred"]) == pytest.approx(row["bleu1"], abs=1e-9), row


@pytest.mark.parametrize(
    ("action", "arguments", "bad_action", "bad_arguments"),
    [
        (
            "Answer Question About The Image",
            "examples/hybowtyx.png, what objects are on the sink",
            "Get Photo Description",
            "examples/hybowtyx.png",
        ),
        (
            "Answer Question About The Image",
            "image/wuspouwe.png, what is the color of the man's jacket?",
            "Hed Detection On Image",
            "image/wuspouwe.png",
        ),
    ],
    ids=["Table 7", "Table 8"],
)
def test_gpt_35s_bad_cases(action: str, arguments: str, bad_action: str, bad_arguments: str) -> None:
    """The supplement's: a tool is needed, and the wrong one is called."""
    form = "Thought: Do I need to use a tool? Yes\nAction: {}\nAction Input: {}\nObservation:"
    gold = form.format(action, arguments)
    assert score_item(gold, gold).acc == 1
    bad = score_item(gold, form.format(bad_action, bad_arguments))
    assert (bad.thought, bad.action, bad.acc) == (1, 0, 0)
    assert bad.args < 1


def test_an_exact_tool_call_scores_one_and_white_space_around_it_is_free() -> None:
    assert score_item(USE, f"\n {USE}\n\n") == score_item(USE, USE)
    assert score_item(USE, USE).acc == 1.0


def test_a_closing_thought_is_free_only_if_it_is_one_plain_no() -> None:
    assert score_item(USE, USE + CLOSE).acc == 1.0
    assert score_item(USE, USE + CLOSE + CLOSE).thought == pytest.approx(1 / 3)


def test_a_trailing_ai_prefix_without_an_answer_does_not_count() -> None:
    # the reference strips the response, so nothing of "AI: " is left to find
    assert score_item(NO_TOOL, "Thought: Do I need to use a tool? No\nAI: ").acc == 0.0
    assert score_item(NO_TOOL, "Thought: Do I need to use a tool? No\nAI: x").acc == 1.0


def test_arguments_of_half_a_match_are_enough_for_success() -> None:
    gold = USE.replace("image/a.png", "image/a.png, the dog")
    half = score_item(gold, USE.replace("image/a.png", "image/b.png, cat"))
    assert half.args == pytest.approx(0.5)
    assert half.acc == 1.0
    worse = score_item(gold, USE.replace("image/a.png", "the dog, image/a.png"))
    assert (worse.args, worse.acc) == (0.0, 0.0)


def test_nothing_against_nothing_scores_zero_where_the_reference_has_nan() -> None:
    gold = "Action: A\nAction Input: b"  # a tool item without a thought
    assert score_item(gold, gold).thought == 0.0
    assert score_item(gold, gold).acc == 0.0


def test_a_gold_text_with_unpaired_actions_is_an_error_that_names_the_item() -> None:
    gold = "Action: A\nAction: B\nAction Input: c"
    with pytest.raises(InputError, match=r"gold item 'x7': 2 lines 'Action: ...' and 1 lines"):
        score_gpt4tools({"x7": gold}, {"x7": ""})


def test_items_and_responses_must_match() -> None:
    with pytest.raises(InputError, match="no GPT4Tools item"):
        score_gpt4tools({}, {})
    with pytest.raises(InputError, match="1 ids are in only one of gold and predictions, the first is 2"):
        score_gpt4tools({1: USE, 2: USE}, {1: USE})
