"""`evaluate` without Ray: which records go where, what is written, and the metrics' names."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data_pipeline.errors import InputError
from data_pipeline.records.catalog import Tool, ToolCatalog
from data_pipeline.records.schema import Modality, ToolRecord, Turn
from ray_jobs.config import load_run_spec
from ray_jobs.evaluate import job as job


def build_record(number: int, is_dialogue: bool, has_media: bool = False) -> ToolRecord:
    return ToolRecord(
        record_id=f"r{number}",
        source="test",
        modality=Modality.IMAGE if has_media else Modality.TEXT,
        instruction="do it",
        valid_tool_ids=("lab/dialogue-tool" if is_dialogue else "lab/tool",),
        media_uri="image/gone.png" if has_media else "",
        turns=(Turn("assistant", "x"),) if is_dialogue else (),
    )


class Part:
    """Stands for what one kind of evaluation gives."""

    def __init__(self, name: str) -> None:
        self.result = {"constrained": {"acc": 0.5}, "n_questions": 3}
        self._name = name

    def to_json(self) -> dict[str, Any]:
        return {"seen": {"sr": 0.25}, "n_too_long": 0}

    def to_markdown(self) -> str:
        return f"## {self._name}\n"

    def write(self, folder: Path, *arguments: Any) -> None:
        (folder / self._name).write_text(repr(arguments))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Evaluate a test split; gives (evaluation, logged metrics, what the parts were asked)."""

    def evaluate(test_records: list[ToolRecord]) -> tuple[job.Evaluation, dict[str, float], dict[str, Any]]:
        asked: dict[str, Any] = {}
        logged: dict[str, float] = {}
        train_records = [build_record(100, False), build_record(101, True)]
        corpus = SimpleNamespace(
            records={"train": train_records, "val": [build_record(102, False)], "test": test_records}.__getitem__,
            catalog=ToolCatalog([Tool("lab/tool"), Tool("lab/dialogue-tool", name="Dialogue Tool")]),
            manifest={},
            media_hashes=lambda *splits: [],
        )
        summary = SimpleNamespace(
            model_config={},
            find_best_checkpoint=lambda: tmp_path,
            open_corpus=lambda folder: corpus,
            max_target_tokens=64,
            mlflow_run_id="1",
            wide="wide.safetensors",
        )

        def ask(name: str, *arguments: Any) -> Part:
            asked[name] = arguments[1:]
            return Part(name)

        tracker = SimpleNamespace(log_metrics=logged.update, log_artifacts=lambda *_: None, close=lambda: None)
        monkeypatch.setattr(job.TrainSummary, "load", lambda folder: summary)
        monkeypatch.setattr(job, "RunLogger", lambda *_, spool_dir: tracker)
        monkeypatch.setattr(job, "evaluate_questions", lambda *a: ask("questions", *a))
        monkeypatch.setattr(job, "evaluate_dialogues", lambda *a: ask("dialogues", *a))
        spec = load_run_spec(None, [f"runs_dir={tmp_path}", "name=x", "evaluate.max_questions=2"])
        return job.evaluate(spec), logged, asked

    return evaluate


def test_questions_and_dialogues_go_their_own_ways(run: Any, tmp_path: Path) -> None:
    records = [build_record(number, number % 2 == 1) for number in range(6)]
    records.insert(0, build_record(9, False, has_media=True))
    evaluation, logged, asked = run(records)
    tool_ids, _, train_records, val_records, questions, _, n_unusable, wide = asked["questions"]
    assert wide == "wide.safetensors"
    assert tool_ids == ("lab/tool",), "a question may not be answered with a tool that only dialogues know"
    assert [record.record_id for record in train_records] == ["r100"]
    assert [record.record_id for record in val_records] == ["r102"]
    assert len({record.record_id for record in questions} & {"r0", "r2", "r4"}) == 2, "a sample of what can be used"
    assert n_unusable == 1
    dialogues, max_tokens, seen_tool_ids, catalog, finds_cards = asked["dialogues"]
    assert "lab/tool" in catalog
    assert not finds_cards
    assert len({record.record_id for record in dialogues} & {"r1", "r3", "r5"}) == 2
    assert (max_tokens, seen_tool_ids) == (2048, {"lab/dialogue-tool"})

    folder = tmp_path / "x" / "evaluation"
    assert (folder / "report.md").read_text() == "# Evaluation\n\n## questions\n\n## dialogues\n"
    assert json.loads((folder / job.EVALUATION_FILE).read_text()) == evaluation.summary
    assert logged == {
        "eval/constrained/acc": 0.5,
        "eval/dialogues/seen/sr": 0.25,
        "eval/dialogues/n_too_long": 0.0,
    }
    positions = {"r9": 0, "r0": 1, "r2": 2, "r4": 3}
    written = (folder / "questions").read_text()
    assert written.startswith(repr((positions, {}))[:-1]), "places count what cannot be used as well"

    evaluation, _, asked = run(records[2:3])
    assert asked.keys() == {"dialogues"}
    assert evaluation.questions is None
    assert not (folder / "questions").exists(), "an earlier evaluation is replaced"
    assert run(records[1:2])[2].keys() == {"questions"}


def test_nothing_to_evaluate_is_an_error(run: Any) -> None:
    with pytest.raises(InputError, match="1 questions have no media vector, 0 dialogues"):
        run([build_record(0, False, has_media=True)])


def test_metric_names_say_which_group() -> None:
    result = {"free": {"recall@1": 1, "note": "x", "none": None}, "dialogues": {"all": {"sr": 0.5}}, "n_questions": 2}
    assert job.name_metrics(result) == {"eval/free/recall_at_1": 1.0, "eval/dialogues/all/sr": 0.5}


def test_of_a_large_training_split_the_baselines_get_a_sample(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [build_record(number, number % 4 == 0) for number in range(40)]
    corpus: Any = SimpleNamespace(records=lambda split: iter(records))
    whole = job.read_training(corpus, seed=0)
    assert whole.questions == [record for record in records if not record.is_dialogue]
    assert (whole.answered_tool_ids, whole.called_tool_ids) == ({"lab/tool"}, {"lab/dialogue-tool"})
    assert not capsys.readouterr().out
    monkeypatch.setattr(job, "BASELINE_QUESTIONS", 7)
    sample = job.read_training(corpus, seed=0)
    assert len(sample.questions) == 7
    assert set(map(id, sample.questions)) < set(map(id, whole.questions))
    assert sample.answered_tool_ids == whole.answered_tool_ids
    assert capsys.readouterr().out == "evaluate: the baselines learn from 7 of 30 training questions, a sample\n"
