"""Queries for a tool: prohibited words, form, length, repetition, and how many of either kind are kept."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from data_pipeline.instruct.queries import (
    ALWAYS_PROHIBITED,
    KEPT,
    Query,
    Refused,
    keep_best,
    list_prohibited,
    parse_queries,
    render_query_prompt,
)
from data_pipeline.records.catalog import Tool

RAIN = Tool("google/maxim-s2-deraining", "Removes streaks of rain from a picture.", "image", "image")
HAZE = Tool("local/dehaze", "Removes haze from a picture.", "image", "image")


def test_what_a_query_may_not_say() -> None:
    plain = list_prohibited(RAIN)
    assert plain == (*ALWAYS_PROHIBITED, "google", "maxim", "deraining")
    telling = list_prohibited(RAIN, [HAZE])
    assert telling == (*plain, "streaks", "rain")
    prompt = render_query_prompt(RAIN, telling, (0, 1), is_ambiguous=True)
    assert "Prohibited words: API, tool, tools, model, models, google, maxim, deraining, streaks, rain" in prompt
    assert f"Name: {RAIN.tool_id}\nDescription: {RAIN.description}\n" in prompt
    assert "The user attaches a picture" in prompt
    assert "words alone must not tell" in prompt
    assert "words alone must not tell" not in render_query_prompt(RAIN, plain, (0, 2), is_ambiguous=False)


def test_lines_are_checked() -> None:
    text = "\n".join(
        [
            "Sure, here they are:",
            "Query1: It poured when I took this, can you mend it?",
            'Query2: "My holiday shot is spoilt, please repair it."',
            "query 3: It poured when I took this, can you mend it please?",
            "4. Take the RAIN away from it, will you?",
            "5) Which API would you use on this shot?",
            "Query6: Mend it",
            f"Query7: {'word ' * 120}",
            "Query8:",
            "Query11: I took this at our reunion. How many of us are on it?",
            "Query9: Почини мою фотографию, пожалуйста.",
            "Query10: Привет is what I wrote on this photo, mend it.",
            "Query12: Kannst du dieses Bild bitte in Ordnung bringen?",
            "Query13: I wrote 'Herzlichen Glückwunsch zum Geburtstag' on this photo, mend it.",
        ]
    )
    found = parse_queries(text, RAIN, list_prohibited(RAIN, [HAZE]), is_ambiguous=True)
    assert [query.words for query in found if isinstance(query, Query)] == [
        "It poured when I took this, can you mend it?",
        "My holiday shot is spoilt, please repair it.",
        "Привет is what I wrote on this photo, mend it.",
        "I wrote 'Herzlichen Glückwunsch zum Geburtstag' on this photo, mend it.",
    ]
    reasons = [line.reason for line in found if isinstance(line, Refused)]
    assert reasons == [
        "format",
        "repeated",
        "prohibited",
        "prohibited",
        "length",
        "length",
        "format",
        "repeated",
        "language",
        "language",
    ]
    assert all(query.is_ambiguous and query.tool_id == RAIN.tool_id for query in found if isinstance(query, Query))


def test_as_many_of_either_kind_are_kept() -> None:
    def make(n_open: int, n_plain: int) -> list[Query]:
        return [
            Query(f"{kind} {n}", "t", kind) for kind, count in ((True, n_open), (False, n_plain)) for n in range(count)
        ]

    for n_open, n_plain, kept in ((20, 20, (5, 5)), (3, 20, (3, 7)), (20, 2, (8, 2)), (0, 4, (0, 4)), (20, 0, (10, 0))):
        best, repeated = keep_best(make(n_open, n_plain))
        assert repeated == []
        assert (sum(q.is_ambiguous for q in best), sum(not q.is_ambiguous for q in best)) == kept
        assert len(best) <= KEPT
    twice = [Query("Mend it", "t", False), Query("mend  IT", "t", False)]
    assert keep_best(twice)[0] == twice[:1]


def test_near_repetitions_of_other_answers_are_left_out() -> None:
    first = Query("It poured when I took this, can you mend it?", "t", False)
    near = Query("It poured when I took this, can you mend it now?", "t", True)
    other = Query("My holiday shot is spoilt, please repair it.", "t", True)
    kept, repeated = keep_best([first, near, other])
    assert kept == [other, first]
    assert [(each.line, each.reason) for each in repeated] == [(near.words, "repeated")]
    spelt = Query("Der Hund sa\u00df auf dem gr\u00fcnen Sofa, bitte sch\u00e4rfer", "t", False)
    apart = Query("Der Hund sa\u00df auf dem gru\u0308nen Sofa, bitte scha\u0308rfer", "u", False)
    assert keep_best([apart], [spelt])[0] == []
    assert keep_best([other], [spelt])[0] == [other], "another tool's, in other words"


@pytest.mark.parametrize(
    ("words", "tool_id", "description", "is_ambiguous"),
    [
        (
            "Generate a picture conditioned on the image. A professional athlete dressed in a football uniform, "
            "throwing his arms up in a cheer.",
            "lllyasviel/control_v11p_sd15_openpose",
            "Makes a picture that follows a human pose.",
            True,
        ),
        ("I want to enhance the image quality", RAIN.tool_id, RAIN.description, True),
        (
            "In my language class, we listened to a story. I managed to record it; can you tell me its content?",
            "lab/hindi-speech",
            "Writes down Hindi speech.",
            True,
        ),
        (
            "I have a photo of marine life taken during my scuba diving trip. Can you identify its category?",
            "Neto71/sea_mammals",
            "Names the sea mammal that a photo shows.",
            False,
        ),
        (
            "Can you help me generate an image of a ’golden-haired magical princess’ in the Disney style?",
            "nitrosocke/mo-di-diffusion",
            "Makes pictures in the style of a film studio.",
            False,
        ),
    ],
)
def test_the_papers_examples_in_words(words: str, tool_id: str, description: str, is_ambiguous: bool) -> None:
    """Of MLLM-Tool's Figure 1 and sections 3.2 and 3.3."""
    tool = Tool(tool_id, description)
    assert parse_queries(f"Query1: {words}", tool, list_prohibited(tool), is_ambiguous) == [
        Query(words, tool_id, is_ambiguous)
    ]


_CONTINUED = re.compile(r"\s*To be continued\s+Continued\s*")
_EXAMPLE = re.compile(
    r"Input: API Name: (?P<name>[^\[\s]+) Description: (?P<description>.*?) Prohibit Words: ”(?P<prohibited>[^”]*)” "
    r"Output: (?P<queries>Query1: .*?)(?= Example \d| Note that)",
    re.DOTALL,
)


@pytest.mark.parametrize(
    ("figure", "is_ambiguous", "left_out"),
    [
        ("8", False, {"microsoft/codereviewer": {}, "Salesforce/blip-vqa-base": {"prohibited": "its model and color"}}),
        (
            "9",
            True,
            {
                "timm/resnet101.a1h_in1k": {},
                "lllyasviel/control_v11f1p_sd15_depth": {"repeated": "a family picnic in a sunlit park"},
            },
        ),
    ],
)
def test_the_papers_own_queries(
    shared_dir: Path, figure: str, is_ambiguous: bool, left_out: dict[str, dict[str, str]]
) -> None:
    """MLLM-Tool's Figures 8 and 9 show ten queries of each of four tools. All are kept but for one that says a word
    which its prompt prohibits, and one that stands there twice."""
    text = (shared_dir / "papers" / "mllm-tool.txt").read_text(encoding="utf-8")
    prompt = text[: text.index(f"Figure {figure}: Example of the")].rpartition("### User:")[2]
    examples = list(_EXAMPLE.finditer(_CONTINUED.sub(" ", prompt)))
    assert [each["name"] for each in examples] == list(left_out)
    for each in examples:
        tool = Tool(each["name"], each["description"], "image" if is_ambiguous else "")
        reply = re.sub(r" (?=Query\d+: )", "\n", each["queries"])
        assert len(reply.splitlines()) == 10
        for prohibited in (each["prohibited"].split(", "), list_prohibited(tool)):
            found = parse_queries(reply, tool, prohibited, is_ambiguous)
            refused = {line.reason: line.line for line in found if isinstance(line, Refused)}
            expected = left_out[tool.tool_id]
            assert refused.keys() == expected.keys(), (refused, prohibited)
            assert all(words in refused[reason] for reason, words in expected.items())
            assert sum(isinstance(line, Query) for line in found) == 10 - len(expected)
