"""Two judges: what they read, and what counts as their word."""

from __future__ import annotations

import pytest

from data_pipeline.instruct.cases import Case
from data_pipeline.instruct.judging import describe_judges, parse_verdict, render_judge_prompts


def test_both_judges_read_the_same_case() -> None:
    case = Case("k", "A file.\n", "Do it", "a", "takes a")
    strict, broad = render_judge_prompts(case)
    assert strict != broad
    for prompt in (strict, broad):
        assert prompt.startswith('A file.\nThe user says: "Do it"\nThe assistant\ntakes a\n')
        assert prompt.endswith("Answer with one word, yes or no.")


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("Yes", "yes"),
        ("**no**, as it is another tool", "no"),
        ('"YES."', "yes"),
        ("Yesterday", "unclear"),
        ("I would say yes", "unclear"),
        ("", "unclear"),
    ],
)
def test_a_verdict_is_the_first_word(text: str, verdict: str) -> None:
    assert parse_verdict(text) == verdict


def test_what_a_person_should_look_at() -> None:
    assert describe_judges("yes", "yes") == describe_judges("", "") == describe_judges("yes", "") == ""
    assert describe_judges("no", "no") == "both judges: no"
    assert describe_judges("no", "yes") == "the judges disagree: strict no, generous yes"
    assert "unclear" in describe_judges("yes", "unclear")
