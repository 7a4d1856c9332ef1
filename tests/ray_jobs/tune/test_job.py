"""A sweep without a cluster: what is left after a restart, the order of a grid, and an end without a winner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import InputError
from ray_jobs.config import RunSpec
from ray_jobs.tune.driver import SweepRun
from ray_jobs.tune.job import conclude, list_trials, load_known
from ray_jobs.tune.space import identify, parse_space
from ray_jobs.tune.trials import TrialFolders, TrialRecord


def build_spec(runs_dir: Path, **tune: Any) -> RunSpec:
    parameters = {"train.lr": [1e-4, 1e-3, 1e-2], "model.lora_r": [4, 8]}
    return RunSpec.model_validate({"name": "mine", "runs_dir": runs_dir, "tune": {"parameters": parameters, **tune}})


def build_sweep(spec: RunSpec) -> SweepRun:
    return SweepRun(parse_space(spec), "sweep", TrialFolders(spec.run_dir, "sweep"), "parent")


def build_record(name: str, status: Any, reason: str = "") -> TrialRecord:
    return TrialRecord(name, "sweep", {"train.lr": 1e-3, "model.lora_r": 4}, 5, status=status, reason=reason)


class Tracker:
    """Takes what is logged."""

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}

    def log_metrics(self, metrics: dict[str, float]) -> None:
        self.metrics |= metrics

    def log_artifacts(self, folder: Path, artifact_path: str) -> None:
        assert (folder / "report.md").is_file()


def test_a_grid_whose_trials_are_compared_is_shuffled_but_whole(tmp_path: Path) -> None:
    plain, shuffled = build_spec(tmp_path), build_spec(tmp_path, scheduler="asha")
    in_order, mixed = (list_trials(spec, parse_space(spec)) for spec in (plain, shuffled))
    assert in_order is not None
    assert mixed is not None
    assert in_order != mixed
    assert sorted(map(identify, in_order)) == sorted(map(identify, mixed))
    assert mixed == list_trials(shuffled, parse_space(shuffled)), "a restart goes through them in the same order"


def test_a_stopped_trial_goes_on_only_where_no_scheduler_would_stop_it(tmp_path: Path) -> None:
    for scheduler, is_over in (("asha", True), ("none", False)):
        spec = build_spec(tmp_path, scheduler=scheduler)
        sweep = build_sweep(spec)
        sweep.folders.save(build_record("a", "stopped"))
        (known,) = load_known(spec, sweep)
        assert known.is_over == is_over


def test_a_sweep_without_a_winner_is_reported_and_says_why(tmp_path: Path) -> None:
    spec, tracker = build_spec(tmp_path), Tracker()
    records = [build_record("a", "failed", "ValueError: out of luck"), build_record("b", "stopped")]
    with pytest.raises(InputError, match=r"no trial of the sweep finished with a score \(ValueError: out of luck\)"):
        conclude(spec, build_sweep(spec), records, tracker)  # pyright: ignore[reportArgumentType]
    assert tracker.metrics["sweep/trials_failed"] == 1
    assert "ValueError: out of luck" in (spec.run_dir / "sweep" / "report.md").read_text(encoding="utf-8")


def test_a_sweep_whose_trials_report_no_score_says_so(tmp_path: Path) -> None:
    spec = build_spec(tmp_path)
    unscored = build_record("a", "finished")
    unscored.add_epoch({"epoch": 1, "step": 10, "val/acc": 0.5})
    with pytest.raises(InputError, match=r"no trial of the sweep finished with a score \(none reported one\)"):
        conclude(spec, build_sweep(spec), [unscored], Tracker())  # pyright: ignore[reportArgumentType]
    assert " - |        1/5 |" in (spec.run_dir / "sweep" / "report.md").read_text(encoding="utf-8")
