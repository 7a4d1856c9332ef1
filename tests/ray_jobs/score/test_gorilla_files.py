"""`score --protocol gorilla` from its options to what it prints and writes, and every way in which input is wrong."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import InputError
from ray_jobs.cli import main
from ray_jobs.score.gorilla_files import read_gorilla_gold
from ray_jobs.score.job import add_arguments, run


def call(model: str) -> str:
    return f"torch.hub.load(repo_or_dir='a/b', model='{model}', pretrained=True)"


def row(words: str, model: str, domain: str = "Vision") -> dict[str, Any]:
    card = {"domain": domain, "functionality": "f", "api_name": model, "description": "d", "api_call": call(model)}
    return {"code": f"###Instruction: {words}\n###Output: x", "api_call": call(model), "api_data": card}


def write_lines(path: Path, entries: Sequence[Any]) -> Path:
    path.write_text("".join((e if isinstance(e, str) else json.dumps(e)) + "\n" for e in entries), encoding="utf-8")
    return path


def score(*options: str | Path) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args(["--protocol", "gorilla", *map(str, options)]))


@pytest.fixture
def gold(tmp_path: Path) -> Path:
    rows = [row("Depth?", "midas"), row("depth?", "dpt", "Audio"), row("Dogs?", "resnet", "Classes")]
    return write_lines(tmp_path / "torchhub_eval.json", rows)


def test_as_a_command(gold: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predictions = write_lines(
        tmp_path / "p.jsonl",
        [
            {"index": "2", "response": "torch.hub.load('x', 'y')"},
            {"index": 0, "response": "<<<api_call>>>: torch.hub.load('a/b', 'dpt')\n<<<api_provider>>>: P"},
            {"index": 1.0, "response": "no idea"},
        ],
    )
    options = ["--gold", str(gold), "--predictions", str(predictions), "--per-item", str(tmp_path / "items.jsonl")]
    assert main(["score", "--protocol", "gorilla", *options]) == 0
    lines = capsys.readouterr().out.rstrip("\n").split("\n")
    assert lines[0].startswith("| Metric")
    assert "Catalogue: 3 APIs. Source: the gold's own APIs." in lines[-2]
    third = pytest.approx(1 / 3)
    assert json.loads(lines[-1]) == {
        "functionality": 0.0,  # dpt's domain is not that of the first row
        "exact": third,  # but it answers the same words in the second
        "hallucination": third,
        "no_call": third,
        "items": 3,
    }
    items = [json.loads(line) for line in (tmp_path / "items.jsonl").read_text().split("\n") if line]
    assert [item["index"] for item in items] == [0, 1, 2]
    assert [item["matched"] for item in items] == [call("dpt"), "", ""]


def test_further_files_add_to_the_apis(gold: Path, tmp_path: Path) -> None:
    answers = [{"index": index, "response": "torch.hub.load('a/b', 'unet')"} for index in range(3)]
    predictions = write_lines(tmp_path / "p.jsonl", answers)
    assert score("--gold", gold, "--predictions", predictions)["hallucination"] == 1.0
    more = tmp_path / "more"
    more.mkdir()
    write_lines(more / "torchhub_train.json", [row("Cells?", "unet", "Classes")])
    known = score("--gold", gold, "--predictions", predictions, "--catalog", more)
    assert (known["hallucination"], known["functionality"]) == (0.0, pytest.approx(1 / 3))
    cards = write_lines(tmp_path / "torchhub_api.jsonl", [row("", "unet", "Classes")["api_data"]])
    assert score("--gold", gold, "--predictions", predictions, "--catalog", cards) == known


def test_a_folder_is_numbered_as_prepare_numbers_it(gold: Path) -> None:
    write_lines(gold.parent / "huggingface_eval.json", [row("Cats?", "cat")])
    write_lines(gold.parent / "huggingface_train.json", [row("Cows?", "cow")])
    found = read_gorilla_gold(gold.parent)
    assert [item.right[0].name for item in found.items.values()] == ["midas", "midas", "resnet", "cat"]
    assert [api.name for api in found.apis] == ["midas", "dpt", "resnet", "cat"]


def test_a_row_whose_words_cannot_be_read_has_its_answer_alone(tmp_path: Path) -> None:
    rows = [row("Depth?", "midas"), row("x", "dpt") | {"code": "Depth?"}]
    found = read_gorilla_gold(write_lines(tmp_path / "g.json", rows))
    assert [[api.name for api in item.right] for item in found.items.values()] == [["midas"], ["dpt"]]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"index": 0, "response": "f()"}], "2 of 3 gold records have no prediction, the first is index 1"),
        ([{"index": 0, "response": "f()"}] * 2, "line 2: index 0 is predicted twice"),
        ([{"index": 7, "response": "f()"}], "line 1: the gold has no record with index 7"),
        ([{"id": 0, "response": "f()"}], 'line 1: "index" is missing; give the position of the gold'),
        ([{"index": 0, "response": None}], 'line 1: "response" is null; give a string'),
        (["{"], "line 1: not JSON"),
        ([], "the file is empty"),
    ],
)
def test_faulty_predictions_are_told(gold: Path, tmp_path: Path, entries: list[Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        score("--gold", gold, "--predictions", write_lines(tmp_path / "p.jsonl", entries))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "no question in it"),
        (["[1]"], "record 0: not in the released form"),
        ([{"id": 1, "output": "x"}], "line 1: not in the released form.*give a released file of APIBench"),
        ([row("a", "b") | {"code": None}], "line 1: code is missing or no text"),
        (["{]"], "line 1: not valid JSON"),
    ],
)
def test_faulty_gold_is_told(tmp_path: Path, entries: list[Any], message: str) -> None:
    gold = write_lines(tmp_path / "torchhub_eval.json", entries)
    with pytest.raises(InputError, match=message):
        score("--gold", gold, "--predictions", tmp_path / "p.jsonl")


def test_other_faults_are_told(gold: Path, tmp_path: Path) -> None:
    predictions = write_lines(tmp_path / "p.jsonl", [{"index": i, "response": ""} for i in range(3)])
    with pytest.raises(InputError, match="--report belongs to --protocol mllm-tool; leave it out for gorilla"):
        score("--gold", gold, "--predictions", predictions, "--report", tmp_path / "r")
    with pytest.raises(InputError, match="no API in it"):
        score("--gold", gold, "--predictions", predictions, "--catalog", write_lines(tmp_path / "c.json", []))
    with pytest.raises(InputError, match=r"absent\.json cannot be read"):
        score("--gold", tmp_path / "absent.json", "--predictions", predictions)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds none of torchhub_train\.json"):
        read_gorilla_gold(tmp_path / "empty")
