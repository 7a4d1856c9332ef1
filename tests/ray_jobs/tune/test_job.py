"""A sweep without a cluster: what is left after a restart, the order of a grid, and an end without a winner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_pipeline.batches.vector_table import VectorFile
from data_pipeline.errors import InputError
from model.tiny.backbone import build_tiny_backbone
from ray_jobs.config import RunSpec
from ray_jobs.train.features import MediaVectors
from ray_jobs.train.run_folder import only_one
from ray_jobs.tune.driver import SweepRun
from ray_jobs.tune.job import LOCKED_JOB, conclude, hash_tokenizers, list_backbones, list_trials, load_known, run
from ray_jobs.tune.space import identify, parse_space
from ray_jobs.tune.trials import TrialFolders, TrialRecord

PARAMETERS = {"train.lr": 1e-3, "model.lora_r": 4}


def build_spec(runs_dir: Path, **tune: Any) -> RunSpec:
    parameters = {"train.lr": [1e-4, 1e-3, 1e-2], "model.lora_r": [4, 8]}
    return RunSpec.model_validate({"name": "mine", "runs_dir": runs_dir, "tune": {"parameters": parameters, **tune}})


def build_sweep(spec: RunSpec, tokenizer: str = "t") -> SweepRun:
    tokenizers = {spec.model.backbone: tokenizer}
    return SweepRun(parse_space(spec), "sweep", TrialFolders(spec.run_dir, "sweep"), "parent", tokenizers)


def build_record(name: str, status: Any, reason: str = "") -> TrialRecord:
    return TrialRecord(name, "sweep", dict(PARAMETERS), 5, status=status, reason=reason)


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


def test_a_second_sweep_of_the_name_is_refused_before_it_starts_anything(tmp_path: Path) -> None:
    spec = build_spec(tmp_path)
    other = build_spec(tmp_path, search="random")  # whatever it varies: corpus, report and bundle are the same files
    with (
        only_one(spec.run_dir, LOCKED_JOB),
        pytest.raises(InputError, match=r"process \d+ on .* runs this very job \(tune in .*change name to run another"),
    ):
        run(other)
    assert not (tmp_path / "mine" / "corpus").exists()


def test_a_stopped_trial_goes_on_only_where_no_scheduler_would_stop_it(tmp_path: Path) -> None:
    for scheduler, is_over in (("asha", True), ("none", False)):
        spec = build_spec(tmp_path, scheduler=scheduler)
        sweep = build_sweep(spec)
        sweep.folders.save(build_record(sweep.name(PARAMETERS), "stopped"))
        (known,) = load_known(spec, sweep)
        assert known.is_over == is_over


def test_a_trial_of_another_tokenizer_is_no_trial_of_the_sweep(tmp_path: Path) -> None:
    spec = build_spec(tmp_path)
    before, after = build_sweep(spec), build_sweep(spec, "other")
    before.folders.save(build_record(before.name(PARAMETERS), "finished"))
    assert [record.name for record in load_known(spec, before)] == [before.name(PARAMETERS)]
    assert load_known(spec, after) == []


def test_a_backbone_that_cannot_be_loaded_stops_no_other(tmp_path: Path) -> None:
    texts = [["What is this?"], ["Something else entirely, with other words"]]
    folders = [str(build_tiny_backbone(tmp_path / str(i), one, seed=0)) for i, one in enumerate(texts)]
    missing = str(tmp_path / "missing")
    vectors = MediaVectors("", {}, 8, lambda: VectorFile(None, 0, 8, "float32"))
    corpus: Any = None  # only what is made from it needs it
    hashes = hash_tokenizers(build_spec(tmp_path), corpus, vectors, [*folders, missing])
    assert hashes[missing] == ""
    assert len({hashes[folder] for folder in folders} | {""}) == 3
    again = hash_tokenizers(build_spec(tmp_path), corpus, vectors, folders)
    assert again == {folder: hashes[folder] for folder in folders}


def test_backbones_are_those_of_the_list_and_of_trials_before_it(tmp_path: Path) -> None:
    spec = build_spec(tmp_path)
    folders = TrialFolders(spec.run_dir, "sweep")
    folders.save(TrialRecord("a", "sweep", {"model.backbone": "x/old"}, 5))
    varied = RunSpec.model_validate({"name": "mine", "tune": {"parameters": {"model.backbone": ["x/new", "x/old"]}}})
    assert list_backbones(parse_space(varied), folders) == ["x/new", "x/old"]
    assert list_backbones(parse_space(spec), folders) == [spec.model.backbone, "x/old"]


def test_a_sweep_without_a_winner_is_reported_and_says_why(tmp_path: Path) -> None:
    spec, tracker = build_spec(tmp_path), Tracker()
    records = [build_record("a", "failed", "ValueError: out of luck"), build_record("b", "stopped")]
    with pytest.raises(InputError, match=r"no trial of the sweep finished with a score \(ValueError: out of luck\)"):
        conclude(spec, build_sweep(spec), records, tracker)  # pyright: ignore[reportArgumentType]
    assert tracker.metrics["sweep/trials_failed"] == 1
    assert "ValueError: out of luck" in (tmp_path / "mine" / "sweep" / "report.md").read_text(encoding="utf-8")


def test_a_sweep_whose_trials_report_no_score_says_so(tmp_path: Path) -> None:
    spec = build_spec(tmp_path)
    unscored = build_record("a", "finished")
    unscored.add_epoch({"epoch": 1, "step": 10, "val/acc": 0.5})
    with pytest.raises(InputError, match=r"no trial of the sweep finished with a score \(none reported one\)"):
        conclude(spec, build_sweep(spec), [unscored], Tracker())  # pyright: ignore[reportArgumentType]
    assert " - |        1/5 |" in (tmp_path / "mine" / "sweep" / "report.md").read_text(encoding="utf-8")
