"""Evaluation of questions without Ray: the media permutation, the chance level, the files, the summary, its report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import expit, logit

from data_pipeline.records.catalog import Tool, ToolCatalog
from data_pipeline.records.prompts import render_target
from data_pipeline.records.schema import AmbiguityType, Modality, ToolRecord
from model.scoring.calibration import Calibration
from model.scoring.selection import SelectionScores, score_records
from model.scoring.tables import render_selection_markdown
from ray_jobs.evaluate.calibration import measure_calibration
from ray_jobs.evaluate.job import name_metrics
from ray_jobs.evaluate.predictions import write_predictions
from ray_jobs.evaluate.questions import (
    QuestionEvaluation,
    _summarise,
    compute_candidate_chance,
    permute_media,
    render_report,
)

TOOLS = ("a", "b", "c", "unknown")


def build_record(number: int, modality: Modality, tool_ids: tuple[str, ...] = ("a",), **changes: Any) -> ToolRecord:
    uri = "" if modality is Modality.TEXT else f"{modality.value}/{number}"
    return ToolRecord(
        record_id=f"r{number}",
        source="test",
        modality=modality,
        instruction=f"question {number}",
        valid_tool_ids=tool_ids,
        media_uri=uri,
        **changes,
    )


def build_mixed() -> tuple[list[ToolRecord], list[np.ndarray | None]]:
    """Forty questions of all modalities in turn; a medium's vector is its question's number."""
    order = list(Modality)
    records = [build_record(number, order[number % 4]) for number in range(40)]
    media = [np.full(3, number, np.float32) if record.has_media else None for number, record in enumerate(records)]
    return records, media


def test_permuted_media_stay_in_their_modality_and_are_all_used_once() -> None:
    records, media = build_mixed()
    permuted = permute_media(records, media, seed=0)
    origin = [None if vector is None else int(vector[0]) for vector in permuted]
    for number, record in enumerate(records):
        if not record.has_media:
            assert origin[number] is None
    with_media = [number for number, record in enumerate(records) if record.has_media]
    assert sorted(number for number in origin if number is not None) == with_media
    assert all(records[origin[number]].modality is records[number].modality for number in with_media)  # type: ignore[index]
    moved = sum(origin[number] != number for number in with_media)
    assert moved > len(with_media) / 2, "a permutation that moves little would hide what the media do"
    assert [vector is media[i] for i, vector in enumerate(media)] == [True] * 40, "the input is left alone"


def test_the_permutation_depends_on_the_seed_alone() -> None:
    records, media = build_mixed()

    def origins(seed: int) -> list[int | None]:
        return [None if vector is None else int(vector[0]) for vector in permute_media(records, media, seed)]

    assert origins(1) == origins(1)
    assert origins(1) != origins(2)


def test_chance_is_the_mean_share_of_right_candidates() -> None:
    records = [
        build_record(0, Modality.IMAGE, ("a",), candidate_tool_ids=("a", "b", "c")),
        build_record(1, Modality.IMAGE, ("a", "b"), candidate_tool_ids=("a", "b", "c", "d")),
        build_record(2, Modality.IMAGE, ("a",)),
    ]
    assert compute_candidate_chance(records) == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert compute_candidate_chance(records[2:]) is None
    assert compute_candidate_chance([]) is None


def build_evaluation() -> tuple[list[ToolRecord], list[dict[str, Any]], dict[str, SelectionScores]]:
    """Two ambiguous pictures (one answered rightly), two plain texts (both right), one text that no tool solves."""
    ambiguous = {"ambiguity_type": AmbiguityType.QUALITY, "candidate_tool_ids": ("a", "b", "c")}
    records = [
        build_record(0, Modality.IMAGE, ("a",), **ambiguous),
        build_record(1, Modality.IMAGE, ("b",), **ambiguous),
        build_record(2, Modality.TEXT, ("c",)),
        build_record(3, Modality.TEXT, ("a", "c")),
        build_record(4, Modality.TEXT, ("unknown",)),
    ]
    constrained = ["a", "c", "c", "a", "unknown"]
    answers = {
        "constrained": constrained,
        "free": ["a", "nonsense", "c", "a", "unknown"],
        "shuffled_media": ["b", "a", "c", "a", "unknown"],
        "majority": ["a"] * 5,
        "knn": ["a", "a", "c", "a", "a"],
    }
    scores = {
        mode: score_records(records, [[render_target(tool)] for tool in tools], TOOLS)
        for mode, tools in answers.items()
    }
    return records, [{"tool_ids": [tool]} for tool in constrained], scores


def test_summary_holds_what_the_report_and_the_demo_show() -> None:
    summary = _summarise(*build_evaluation())
    assert summary["constrained"]["acc"] == pytest.approx(4 / 5)
    assert summary["free"]["hallu"] == pytest.approx(1 / 5)
    assert summary["ambiguous_media"] == {
        "n": 2,
        "constrained": 0.5,
        "free": 0.5,
        "shuffled_media": 0.0,
        "majority": 0.5,
        "knn": 0.5,
        "candidate_chance": pytest.approx(1 / 3),
    }
    assert summary["unambiguous_text"]["constrained"] == 1.0
    assert summary["unambiguous_text"]["majority"] == pytest.approx(1 / 3)
    assert summary["abstention"] == {"n_unknown": 1, "n_abstained": 1, "precision": 1.0, "recall": 1.0, "f1": 1.0}
    names = name_metrics(summary | {"n_questions": 5})
    assert names["eval/constrained/acc"] == pytest.approx(4 / 5)
    assert names["eval/constrained/recall_at_1"] == pytest.approx(3.5 / 5), "one of the two tools of a question"
    assert not any("@" in name for name in names), "MLflow refuses it"


def test_nobody_abstained_is_no_number() -> None:
    records, decoded, scores = build_evaluation()
    keep = [0, 1, 2, 3]
    parts = {
        mode: score_records([records[i] for i in keep], [[render_target(score.parsed[i] or "")] for i in keep], TOOLS)
        for mode, score in scores.items()
    }
    summary = _summarise([records[i] for i in keep], [decoded[i] for i in keep], parts)
    assert summary["abstention"] == {"n_unknown": 0, "n_abstained": 0, "precision": None, "recall": None, "f1": None}
    assert "eval/abstention/precision" not in name_metrics(summary)


def test_report_compares_every_way_of_answering() -> None:
    records, decoded, scores = build_evaluation()
    report = render_report(_summarise(records, decoded, scores) | {"n_questions": 5, "n_unusable": 2}, scores)
    rows = {line.split("|")[1].strip(): line for line in report.splitlines() if line.startswith("| ")}
    for mode in scores:
        assert mode in rows
    cells = [cell.strip() for cell in rows["constrained"].split("|")[2:-1]]
    assert cells == ["80.0", "0.0", "100.0", "50.0", "100.0"]
    assert "5 test questions, 2 more left out" in report
    assert "allow: 33.3 %" in report
    assert "`unknown` ranked first): 1 of 5, where 1 should be; precision 100.0 %, recall 100.0 %" in report
    assert render_selection_markdown(scores["free"]) in report


def test_report_of_text_alone_has_no_numbers_for_media() -> None:
    records, decoded, scores = build_evaluation()
    keep = [2, 3]
    parts = {
        mode: score_records([records[i] for i in keep], [[render_target("c")] for _ in keep], TOOLS) for mode in scores
    }
    summary = _summarise([records[i] for i in keep], [decoded[i] for i in keep], parts)
    assert "ambiguous_media" not in summary
    report = render_report(summary | {"n_questions": 2, "n_unusable": 0}, parts)
    assert "allow: – %" in report


def test_predictions_are_numbered_as_the_test_file_is(tmp_path: Path) -> None:
    """By source_index, once more for merged copies of the question, else by place in the split, gaps included."""
    records, _, scores = build_evaluation()
    records[0] = build_record(0, Modality.IMAGE, ("a",), source_index=7)
    row = {"tool_ids": ["a"], "probabilities": [0.9], "p_unknown": 0.1, "free": "x", "shuffled_media": "b"}
    positions = {record.record_id: 10 + number for number, record in enumerate(records)}
    QuestionEvaluation(records, [row] * 5, scores, {}).write(
        tmp_path, positions, {"7": [8, 9]}, ToolCatalog.from_tool_ids(["a", "b"])
    )
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == [7, 8, 9, 11, 12, 13, 14]
    assert lines[0]["responses"] == [render_target("a")]
    assert {path.suffix for path in tmp_path.iterdir()} == {".jsonl", ".md", ".csv", ".png"}


def test_apibench_answers_are_written_as_the_calls_that_gorilla_scores(tmp_path: Path) -> None:
    call = "torch.hub.load('a/b', 'c')"
    catalog = ToolCatalog([Tool("a/b:c", call=call), Tool("unknown")])
    record = replace(build_record(0, Modality.TEXT, ("a/b:c",), source_index=4), source="apibench")
    row = {"probabilities": [0.9], "p_unknown": 0.1, "shuffled_media": "a/b:c"}
    decoded = [
        row | {"tool_ids": ["a/b:c"], "free": "{'api_name': a/b:c}\n###"},
        row | {"tool_ids": ["unknown"], "free": "{'api_name': made/up}"},
    ]
    records = [record, replace(record, record_id="x", source_index=5)]
    write_predictions(tmp_path, records, decoded, {"x": 1}, {}, catalog)

    def read(name: str) -> list[tuple[int, str]]:
        rows = [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        return [(row["index"], row["response"]) for row in rows]

    assert read("gorilla.jsonl") == [(4, call), (5, "")]
    assert read("gorilla_free.jsonl") == [(4, call), (5, "{'api_name': made/up}")]


def test_queries_for_two_tools_want_both_first_and_no_other() -> None:
    records, _, scores = build_evaluation()
    records = [replace(record, source="metatool-multi", valid_tool_ids=("a", "c")) for record in records[:3]] + records[
        3:
    ]
    ranked = [["c", "a", "b"], ["a", "b", "c"], ["b", "a", "c"], ["a"], ["unknown"]]
    summary = _summarise(records, [{"tool_ids": tools} for tools in ranked], scores)
    assert summary["two_tools"] == {"n": 3, "acc": pytest.approx(1 / 3)}
    assert "both ranked first in 33.3 % of 3" in render_report(summary | {"n_questions": 5, "n_unusable": 0}, scores)


def test_calibration_is_reported_where_there_was_a_validation_split() -> None:
    records, _, scores = build_evaluation()
    rows = [{"tool_ids": ["a"], "probabilities": [0.9]} for _ in records]
    found = measure_calibration(records, rows, Calibration(0.5, 0.1), n_val=4)
    share = np.mean(["a" in record.valid_tool_ids for record in records])
    assert found["ece_uncalibrated"] == pytest.approx(abs(0.9 - share))
    assert found["ece"] == pytest.approx(abs(expit(0.5 * logit(0.9) + 0.1) - share))
    summary = _summarise(*build_evaluation()) | {"n_questions": 5, "n_unusable": 0, "calibration": found}
    said = render_report(summary, scores)
    assert "with log-odds times 0.50 plus 0.10, fitted on 4 questions of the validation split" in said
