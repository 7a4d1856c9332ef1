"""The MLLM-Tool scorer against the golden values and against hand-made cases of every convention."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support

from data_pipeline.errors import InputError
from data_pipeline.records.prompts import render_target
from data_pipeline.records.schema import AmbiguityType, Modality, ToolRecord
from model.scoring.selection import GoldItem, parse_answer, score_abstention, score_records, score_selection
from ray_jobs.score.files import read_catalog_names, read_selection_gold, read_selection_predictions


def build_gold(*valid_tool_ids: str, modality: Modality = Modality.TEXT) -> GoldItem:
    return GoldItem(frozenset(valid_tool_ids), modality, AmbiguityType.NONE, False, len(valid_tool_ids) > 1)


def answer(tool_id: str) -> str:
    return "{'api_name': " + tool_id + "}"


@pytest.mark.parametrize(
    ("response", "name"),
    [
        ("{'api_name': a/b}", "a/b"),
        (render_target("a/b"), "a/b"),  # the training form with its end marker on the next line
        ("  {'api_name': a/b} \t", "a/b"),
        ("{'api_name':  a/b }", "a/b"),
        ("{'api_name': a/b}\r\n### Human: next", "a/b"),
        ("{'api_name': unknown}", "unknown"),
        ("{'api_name': émile/ß-模型:v1.0}", "émile/ß-模型:v1.0"),
        ("", None),
        ("   ", None),
        ("\n{'api_name': a/b}", None),  # the first line is blank
        ("{'api_name': 'a/b'}", None),
        ('{"api_name": "a/b"}', None),
        ("{'api_name': a b}", None),
        ("{'api_name': }", None),
        ("{'api_name': a/b", None),
        ("'api_name': a/b}", None),
        ("{'api': a/b}", None),
        ("Use {'api_name': a/b}", None),
        ("{'api_name': a/b} please", None),
        ("{'api_name': a/b}{'api_name': c}", None),
        ("{'api_name': [a, b]}", None),
        ("{'api_name': a,b}", None),
        ("a/b", None),
    ],
)
def test_parse_answer_keeps_to_the_stated_form(response: str, name: str | None) -> None:
    assert parse_answer(response) == name


@pytest.mark.parametrize("name", ["first_gold", "mixed", "ten_samples"])
def test_scores_equal_the_golden_values_in_every_group(shared_dir: Path, name: str) -> None:
    expected = json.loads((shared_dir / "oracle/metrics/expected.json").read_text())[name]
    gold = read_selection_gold(shared_dir / "toolmmbench/test_shared.json")
    responses = read_selection_predictions(shared_dir / f"oracle/metrics/pred_{name}.jsonl", gold.items)
    catalog = read_catalog_names(shared_dir / "toolmmbench/api_names.txt")
    assert len(catalog) == 932

    scores = score_selection(list(gold.items.values()), responses, catalog)

    measured = scores.to_json()
    assert measured.keys() == expected.keys()
    for group, values in expected.items():
        assert measured[group] == pytest.approx(values, abs=1e-9), group
        assert measured[group].keys() == values.keys()


def test_every_question_equals_its_golden_line(shared_dir: Path) -> None:
    gold = read_selection_gold(shared_dir / "toolmmbench/test_shared.json")
    responses = read_selection_predictions(shared_dir / "oracle/metrics/pred_mixed.jsonl", gold.items)
    catalog = read_catalog_names(shared_dir / "toolmmbench/api_names.txt")
    lines = (shared_dir / "oracle/metrics/per_record_mixed.jsonl").read_text().split("\n")
    expected = [json.loads(line) for line in lines if line]

    items = score_selection(list(gold.items.values()), responses, catalog).items()

    assert len(items) == len(expected) == 1439
    for index, item, line in zip(gold.items, items, expected, strict=True):
        assert {"index": index, **item} == pytest.approx({k: v for k, v in line.items() if k != "kind"}, abs=1e-9)


def test_each_kind_of_answer_counts_where_it_should() -> None:
    gold = [build_gold("a", "b") for _ in range(5)]
    responses = [[answer("b")], [answer("c")], [answer("invented")], ["a"], [answer("unknown")]]
    scores = score_selection(gold, responses, ["a", "b", "c", "unknown"])
    assert scores.parsed == ["b", "c", "invented", None, "unknown"]
    assert scores.acc.tolist() == [1, 0, 0, 0, 0]
    assert scores.hallu.tolist() == [0, 0, 1, 0, 0]  # malformed is no hallucination, and unknown is a name
    assert scores.format_acc.tolist() == [1, 1, 1, 0, 1]
    assert scores.recall.tolist() == [0.5, 0, 0, 0, 0]


def test_of_several_samples_the_first_decides_all_but_recall() -> None:
    gold = [build_gold("a", "b", "c", "d")]
    scores = score_selection(gold, [["junk", answer("a"), answer("b"), answer("a"), answer("x")]], ["a", "b", "c", "d"])
    overall = scores.to_json()["overall"]
    assert overall == {"n": 1, "acc": 0.0, "hallu": 0.0, "format_acc": 0.0, "recall@5": 0.5}


def test_names_are_compared_stripped_and_as_a_set() -> None:
    record = ToolRecord("r", "s", Modality.TEXT, "q", (" t5-base", "t5-base"))
    assert GoldItem.from_record(record).valid_tool_ids == {"t5-base"}
    assert not GoldItem.from_record(record).is_one_to_many
    scores = score_records([record], [[answer("t5-base")]], [" t5-base "])
    assert scores.to_json()["overall"] == {"n": 1, "acc": 1.0, "hallu": 0.0, "format_acc": 1.0, "recall@1": 1.0}


def test_records_fall_into_the_groups_of_the_paper() -> None:
    records = [
        ToolRecord("0", "s", Modality.TEXT, "q", ("a",)),
        ToolRecord("1", "s", Modality.IMAGE, "q", ("a", "b"), media_uri="i", ambiguity_type=AmbiguityType.DOMAINS),
        ToolRecord("2", "s", Modality.VIDEO, "q", ("b",), media_uri="v", ambiguity_type=AmbiguityType.OTHERS),
    ]
    groups = score_records(records, [[answer("a")]] * 3, ["a", "b"]).to_json()
    counts = {name: (group["n"], group["acc"]) for name, group in groups.items()}
    assert counts == {
        "overall": (3, pytest.approx(2 / 3)),
        "ambiguity:1": (1, 1),
        "ambiguity:5": (1, 0),
        "ambiguity:none": (1, 1),
        "with_ambiguity": (2, 0.5),
        "without_ambiguity": (1, 1),
        "modality:text": (1, 1),
        "modality:image": (1, 1),
        "modality:video": (1, 0),
        "one_to_one": (2, 0.5),
        "one_to_many": (1, 1),
    }


@pytest.mark.parametrize(
    ("gold", "responses", "message"),
    [
        ([], [], "no question to score"),
        ([build_gold("a")], [], "0 lists of responses for 1 questions"),
        ([build_gold("a")], [[]], "same number K >= 1"),
        ([build_gold("a")] * 2, [["x"], ["x", "y"]], "question 1 has 2 responses where question 0 has 1"),
        ([build_gold("a")], ["x"], "question 0 has a bare string"),
    ],
)
def test_a_wrong_number_of_responses_is_an_error(
    gold: list[GoldItem], responses: list[list[str]], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        score_selection(gold, responses, ["a"])


def test_ten_thousand_questions_take_seconds() -> None:
    gold = [build_gold(f"t{i % 7}", f"t{i % 11}") for i in range(10_000)]
    responses = [[answer(f"t{i % 13}")] for i in range(10_000)]
    start = time.process_time()
    scores = score_selection(gold, responses, [f"t{i}" for i in range(13)])
    assert time.process_time() - start < 5
    assert scores.groups["overall"].n == 10_000


def test_abstention_is_scored_as_scikit_learn_scores_a_class() -> None:
    rng = np.random.default_rng(0)
    abstained, unanswerable = rng.random((2, 200)) < [[0.3], [0.2]]
    scores = score_abstention(abstained, unanswerable)
    expected = precision_recall_fscore_support(unanswerable, abstained, average="binary")[:3]
    assert [scores[key] for key in ("precision", "recall", "f1")] == pytest.approx(expected)
    assert (scores["n_abstained"], scores["n_unknown"]) == (abstained.sum(), unanswerable.sum())


def test_abstention_of_nothing_is_no_number() -> None:
    none, some = np.zeros(3, dtype=bool), np.array([True, False, False])
    assert [score_abstention(none, none)[key] for key in ("precision", "recall", "f1")] == [None, None, None]
    assert [score_abstention(none, some)[key] for key in ("precision", "recall", "f1")] == [None, 0.0, 0.0]
