"""Queries for a tool: prohibited words, form, length, repetition, and how many of either kind are kept."""

from __future__ import annotations

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
