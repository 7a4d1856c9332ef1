"""The baselines on hand-made corpora whose right answer is plain."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.errors import InputError
from data_pipeline.records.schema import Modality, ToolRecord
from model.scoring.baselines import _compute_tfidf, knn_baseline, majority_baseline
from model.scoring.selection import parse_answer

REPO = Path(__file__).resolve().parents[3]


def build_record(instruction: str, *tool_ids: str, modality: Modality = Modality.TEXT, sha256: str = "") -> ToolRecord:
    media_uri = "" if modality is Modality.TEXT else sha256 or "m"
    return ToolRecord("r", "s", modality, instruction, tool_ids, media_uri=media_uri, media_sha256=sha256)


TRAIN = [
    build_record("translate this sentence into french", "en-fr", "t5"),
    build_record("translate this sentence into german", "en-de", "t5"),
    build_record("summarize the article", "bart"),
    build_record("remove the haze", "dehaze", modality=Modality.IMAGE, sha256="hazy"),
    build_record("improve this picture", "dehaze", modality=Modality.IMAGE, sha256="hazy2"),
    build_record("improve this picture", "deblur", modality=Modality.IMAGE, sha256="blurred"),
]


def parse(responses: list[list[str]]) -> list[list[str | None]]:
    return [[parse_answer(response) for response in samples] for samples in responses]


def test_majority_is_taken_per_modality() -> None:
    test = [build_record("x", "?"), build_record("y", "?", modality=Modality.IMAGE)]
    assert parse(majority_baseline(TRAIN, test)) == [["t5"], ["dehaze"]]


def test_majority_breaks_ties_by_name_and_fills_up_from_the_other_modalities() -> None:
    test = [build_record("y", "?", modality=Modality.IMAGE), build_record("z", "?", modality=Modality.VIDEO)]
    # all: dehaze 2, t5 2, bart 1, deblur 1, en-de 1, en-fr 1
    assert parse(majority_baseline(TRAIN, test, k=4)) == [
        ["dehaze", "deblur", "t5", "bart"],
        ["dehaze", "t5", "bart", "deblur"],
    ]


def test_nearest_words_decide_and_frequent_tools_come_first() -> None:
    test = [build_record("Please translate into German!", "?"), build_record("the ARTICLE", "?")]
    assert parse(knn_baseline(TRAIN, test)) == [["t5"], ["bart"]]
    assert parse(knn_baseline(TRAIN, test, k=3)) == [["t5", "en-de", "en-fr"], ["bart", "t5", "en-fr"]]


def test_neighbours_of_another_modality_do_not_count() -> None:
    test = [build_record("summarize the article", "?", modality=Modality.IMAGE)]
    assert parse(knn_baseline(TRAIN, test))[0][0] in {"dehaze", "deblur"}


def test_a_modality_without_training_questions_uses_all() -> None:
    test = [build_record("summarize the article", "?", modality=Modality.VIDEO)]
    assert parse(knn_baseline(TRAIN, test)) == [["bart"]]


def test_media_decide_where_the_words_do_not() -> None:
    vectors = {
        "hazy": np.array([1.0, 0.0, 0.0]),
        "hazy2": np.array([2.0, 0.1, 0.0]),
        "blurred": np.array([0.0, 3.0, 0.0]),
        "new": np.array([0.1, 1.0, 0.1]),
    }
    test = [build_record("improve this picture", "?", modality=Modality.IMAGE, sha256="new")]
    assert parse(knn_baseline(TRAIN, test)) == [["dehaze"]]  # words alone: the first of two equal neighbours
    assert parse(knn_baseline(TRAIN, test, vectors)) == [["deblur"]]
    del vectors["new"]
    assert parse(knn_baseline(TRAIN, test, vectors)) == [["dehaze"]]


def test_long_questions_are_no_nearer_for_being_long() -> None:
    rambling = "photo " * 30 + "of a cat and of a dog and of a horse and of a cow and of a sheep"
    train = [build_record(rambling, "long"), build_record("photo of a cat", "short")]
    assert parse(knn_baseline(train, [build_record("a photo of the cat", "?")])) == [["short"]]


def test_words_are_weighted_by_count_and_rarity() -> None:
    """Terms of the first question: cat, twice and in both questions; dog, "cat cat" and "cat dog", once and in one."""
    train, _ = _compute_tfidf([build_record("Cat cat dog", "a"), build_record("cat!", "b")], [build_record("x", "?")])
    rare = math.log(3 / 2) + 1
    raw = np.array([1 + math.log(2), rare, rare, rare])  # the idf of cat is ln(3 / 3) + 1 = 1
    assert sorted(train[0].data) == pytest.approx(sorted(raw / np.linalg.norm(raw)))
    assert train[1].data.tolist() == [1.0]


def test_words_never_seen_still_get_an_answer() -> None:
    assert parse(knn_baseline(TRAIN, [build_record("!!! 雪", "?")]))[0][0] is not None
    assert parse(knn_baseline([build_record("!!!", "a")], [build_record("???", "?")])) == [["a"]]


def test_answers_do_not_depend_on_the_process() -> None:
    """Python salts its string hash per process; the baseline must not rest on it."""
    code = (
        "from data_pipeline.records.schema import Modality, ToolRecord\n"
        "from model.scoring.baselines import _compute_tfidf\n"
        "records = [ToolRecord('r', 's', Modality.TEXT, words, ('t',)) for words in ('one two three two', 'two')]\n"
        "print([rows.indices.tolist() for rows in _compute_tfidf(records, records[1:])])"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, cwd=REPO, capture_output=True, check=True
        )
        for seed in ("1", "2")
    ]
    assert runs[0].stdout == runs[1].stdout
    assert len(runs[0].stdout) > 10


@pytest.mark.parametrize("baseline", [majority_baseline, knn_baseline])
def test_no_training_records_is_an_error(baseline: object) -> None:
    with pytest.raises(InputError, match="needs training records"):
        baseline([], TRAIN)  # pyright: ignore[reportCallIssue]
