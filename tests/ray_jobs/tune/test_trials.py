"""Records of trials, how trials end, what is told of failures, the report, and who becomes champion."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from PIL import Image
from ray.train import WorkerGroupError

from data_pipeline import storage
from data_pipeline.errors import InputError
from ray_jobs.train.job import TrainSummary
from ray_jobs.train.validation import SCORE_KEY
from ray_jobs.tune.driver import describe_failure
from ray_jobs.tune.report import CURVES_PLOT, PARALLEL_PLOT, REPORT_FILE, write_sweep_report
from ray_jobs.tune.trials import TrialFolders, TrialRecord, find_best


def build_record(name: str, scores: list[float], **changes: Any) -> TrialRecord:
    record = TrialRecord(name, "sweep", {"train.lr": 1e-3, "model.backbone": name}, planned_epochs=3)
    for epoch, score in enumerate(scores, start=1):
        record.add_epoch({"epoch": epoch, "step": 10 * epoch, SCORE_KEY: score, "pid": 7})
    for key, value in changes.items():
        setattr(record, key, value)
    return record


def build_summary(metrics: dict[str, Any]) -> TrainSummary:
    return TrainSummary("best", "last", metrics, "run", "", {}, "data", 512)


def test_records_come_back_and_an_epoch_counts_once(tmp_path: Path) -> None:
    folders = TrialFolders(tmp_path, "sweep")
    record = build_record("a", [0.1, 0.5, 0.2])
    record.add_epoch({"epoch": 3, "step": 30, SCORE_KEY: 0.4})
    assert (record.best_score, record.epochs_run, record.steps) == (0.5, 3, 30)
    assert record.epochs[-1] == {"epoch": 3, "step": 30, SCORE_KEY: 0.4}
    folders.save(record)
    folders.save(build_record("of-another-sweep", [], sweep="other"))
    storage.write_file(folders.path("damaged") / "trial.json", '{"name": ')
    assert folders.load() == [record]


def test_a_trial_ends_as_its_folder_says(tmp_path: Path) -> None:
    folders = TrialFolders(tmp_path, "sweep")
    records = {name: build_record(name, [0.3], status="running") for name in ("stopped", "failed", "finished")}
    folders.note_failure("failed", "ValueError: no")
    build_summary({"epoch": 2, "step": 20, SCORE_KEY: 0.6}).save(folders.path("finished"))
    for record in records.values():
        folders.close(record)
    assert all(record.status == name for name, record in records.items())
    assert records["failed"].reason == "ValueError: no"
    assert records["finished"].best_score == 0.6, "its last report was lost, its summary was not"
    folders.forget_failure("failed")
    folders.close(records["failed"])
    assert records["failed"].status == "stopped"
    assert sorted(folders.load(), key=lambda record: record.name) == sorted(records.values(), key=lambda r: r.name)


def test_the_best_epoch_is_known_even_if_its_report_was_lost_at_a_kill(tmp_path: Path) -> None:
    folders = TrialFolders(tmp_path, "sweep")
    record = build_record("a", [0.3], status="running")
    record.add_epoch({"epoch": 3, "step": 30, SCORE_KEY: 0.5})
    build_summary({"epoch": 2, "step": 20, SCORE_KEY: 0.6}).save(folders.path("a"))
    folders.close(record)
    assert [epoch["epoch"] for epoch in record.epochs] == [1, 2, 3]
    assert (record.best_score, record.epochs_run) == (0.6, 3)


def test_the_best_is_a_finished_one_and_the_cheaper_of_equals() -> None:
    stopped = build_record("a", [0.9], status="stopped")
    dear = build_record("b", [0.5, 0.6, 0.8], status="finished")
    cheap = build_record("c", [0.8], status="finished")
    assert find_best([stopped, dear, cheap]) is cheap
    assert find_best([stopped, build_record("d", [], status="finished")]) is None


def test_a_failure_is_told_by_what_was_at_its_root() -> None:
    root = FloatingPointError("the loss of step 3 is nan: lower train.lr.\nmore")
    carried = WorkerGroupError("Training failed", {0: RuntimeError("wrapped")})
    carried.worker_failures[0].__cause__ = root
    assert describe_failure(carried) == "FloatingPointError: the loss of step 3 is nan: lower train.lr."
    wrapped = RuntimeError("a task failed")
    wrapped.__cause__ = InputError("no such backbone.")
    assert describe_failure(wrapped) == "InputError: no such backbone."
    assert describe_failure(KeyError()) == "KeyError"


def test_the_report_shows_every_trial(tmp_path: Path) -> None:
    records = [
        build_record("slow", [0.1], status="stopped"),
        build_record("broken", [], status="failed", reason="ValueError: a | b"),
        build_record("good", [0.2, 0.4, 0.6], status="finished", seconds=12.4),
    ]
    write_sweep_report(tmp_path, "mine", records, {"best trial": "good"})
    report = tmp_path / REPORT_FILE
    rows = [line for line in report.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]
    assert cells[0] == ["lr", "backbone", "best score", "epochs run", "steps", "seconds", "status"]
    assert cells[2:] == [
        ["0.001", "good", "0.6000", "3/3", "30", "12", "finished"],
        ["0.001", "slow", "0.1000", "1/3", "10", "0", "stopped"],
        ["0.001", "broken", "-", "0/3", "0", "0", "failed: ValueError: a \\| b"],
    ]
    for name in (CURVES_PLOT, PARALLEL_PLOT):
        image = Image.open(tmp_path / name)
        assert len(set(image.convert("L").tobytes())) > 20, "something is drawn"
    write_sweep_report(tmp_path, "mine", records[1:2], {})  # nothing to draw is no fault
