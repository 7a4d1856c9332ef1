"""A sweep that is killed and started again: failed, stopped and finished trials, nested runs, the best one promoted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import ray
from mlflow.tracking import MlflowClient
from ray.util.state import list_actors, list_placement_groups
from small_training import build_base, build_spec, history

from ray_jobs import tune
from ray_jobs.config import RunSpec
from ray_jobs.model_versions import get_champion
from ray_jobs.tracking import PARENT_TAG

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("ray_session")]

EPOCHS = 4
GOOD, ALSO_GOOD, DIVERGES, LEARNS_NOTHING = 1e-2, 2e-2, 1e30, 1e-7
SETTINGS = (
    f"tune.parameters={{train.lr: [{GOOD}, {DIVERGES}, {ALSO_GOOD}, {LEARNS_NOTHING}]}}",
    "tune.scheduler=asha",
    "tune.reduction_factor=2",
    "tune.max_concurrent=2",
    "seed=1",  # the order of the trials: the one that learns nothing comes last
)


def read_trials(spec: RunSpec) -> dict[float, dict[str, Any]]:
    """Learning rate -> its record."""
    records = [json.loads(path.read_text()) for path in (spec.run_dir / "trials").glob("*/trial.json")]
    return {record["parameters"]["train.lr"]: record for record in records}


def wait_until_half_done(spec: RunSpec, sweep: subprocess.Popen[bytes], timeout_s: float = 150) -> None:
    """Until a trial has ended and another is under way."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and sweep.poll() is None:
        trials = list(read_trials(spec).values())
        over = [trial for trial in trials if trial["status"] in ("finished", "failed")]
        under_way = [trial for trial in trials if trial["status"] == "running" and trial["epochs"]]
        if over and any(len(trial["epochs"]) < EPOCHS for trial in under_way):
            return
        time.sleep(0.02)
    raise AssertionError("the sweep was never half done")


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> RunSpec:
    """A sweep whose process was killed when it was half done."""
    base = [*build_base(tmp_path_factory.mktemp("tune"), EPOCHS), *SETTINGS]
    spec = build_spec(base, "sweep")
    env = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    spec.run_dir.mkdir(parents=True)
    with (spec.run_dir / "sweep.log").open("w") as log:
        command = [sys.executable, "-m", "ray_jobs", "tune", *base, "name=sweep"]
        sweep = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_until_half_done(spec, sweep)
    except AssertionError as error:
        raise AssertionError((spec.run_dir / "sweep.log").read_text()) from error
    finally:
        sweep.kill()
        sweep.wait()
    return spec


def test_a_killed_sweep_goes_on_and_its_best_trial_is_promoted(killed: RunSpec) -> None:
    spec = killed
    before = read_trials(spec)
    finished = [Path(path).parent.name for path in (spec.run_dir / "trials").glob("*/train.json")]
    corpus_written_ns = (spec.corpus_dir / "manifest.json").stat().st_mtime_ns
    result = tune.run(spec)

    # --- trials
    trials = read_trials(spec)
    assert trials.keys() == {GOOD, ALSO_GOOD, DIVERGES, LEARNS_NOTHING}
    assert trials[DIVERGES]["status"] == "failed"
    assert "the loss of step" in trials[DIVERGES]["reason"]
    assert trials[LEARNS_NOTHING]["status"] == "stopped"
    assert len(trials[LEARNS_NOTHING]["epochs"]) < EPOCHS
    assert result["trials"]["finished"] in (1, 2)
    for lr, record in before.items():
        known = [epoch for epoch in record["epochs"] if epoch["epoch"] < trials[lr]["epochs"][-1]["epoch"]]
        assert trials[lr]["epochs"][: len(known)] == known, "what was done before the kill stands"
        if record["name"] in finished:
            assert trials[lr]["seconds"] == record["seconds"]
    assert (spec.corpus_dir / "manifest.json").stat().st_mtime_ns == corpus_written_ns

    # --- MLflow: one sweep with a run for each trial
    client = MlflowClient(spec.tracking_uri)
    experiment = client.get_experiment_by_name(spec.tracking.experiment)
    assert experiment is not None
    runs = {run.info.run_id: run for run in client.search_runs([experiment.experiment_id])}
    parent = runs.pop(result["mlflow_run_id"])
    assert parent.info.status == "FINISHED"
    assert all(run.data.tags[PARENT_TAG] == parent.info.run_id for run in runs.values())
    by_name = {run.info.run_name: run for run in runs.values()}
    assert len(by_name) == len(runs) == len(trials)
    for lr, status in ((LEARNS_NOTHING, "KILLED"), (result["best"]["parameters"]["train.lr"], "FINISHED")):
        run = by_name[trials[lr]["name"]]
        assert run.info.status == status
        assert max(history(spec, run.info.run_id, "train/loss")) + 1 >= trials[lr]["epochs"][-1]["step"]
    assert by_name[trials[LEARNS_NOTHING]["name"]].data.tags["toolmm.trial_end"] == "stopped by scheduler"
    diverged = [run for run in runs.values() if run.info.status == "FAILED"]
    assert [float(run.data.params["train.lr"]) for run in diverged] == [DIVERGES]
    artifacts = {artifact.path for artifact in client.list_artifacts(parent.info.run_id, "sweep")}
    assert artifacts == {"sweep/report.md", "sweep/learning_curves.png", "sweep/parallel_coordinates.png"}

    # --- the winner
    assert result["promoted"]
    best_score = max(epoch["val/score"] for trial in trials.values() for epoch in trial["epochs"])
    champion = get_champion(spec.tracking_uri, spec.tracking.registered_model)
    assert champion is not None
    assert (champion.score, champion.run_id) == (best_score, by_name[result["best"]["name"]].info.run_id)
    assert (Path(result["bundle"]) / "bundle.json").is_file()

    # --- nothing is left running
    alive = {actor.class_name for actor in list_actors(filters=[("state", "=", "ALIVE")])}
    assert not {name for name in alive if "Train" in name and "State" not in name}, alive
    assert not list_placement_groups(filters=[("state", "=", "CREATED")])


def test_a_sweep_that_is_over_is_not_run_again(killed: RunSpec) -> None:
    spec = killed
    assert any(trial["status"] == "failed" for trial in read_trials(spec).values())
    tree = spec.model_dump(mode="json")
    tree["tune"]["parameters"] = {"train.lr": [GOOD, ALSO_GOOD, LEARNS_NOTHING]}
    tree["tune"]["search"] = "grid"
    result = tune.run(RunSpec.model_validate(tree))
    assert not result["promoted"]
    assert "it is the champion already (version 1)" in result["promotion"]
