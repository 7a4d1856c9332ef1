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

from ray_jobs.config import RunSpec
from ray_jobs.tracking.model_versions import get_champion
from ray_jobs.tracking.runs import PARENT_TAG
from ray_jobs.tune import job as tune

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("ray_session")]

EPOCHS = 8
GOOD, LEARNS_NOTHING = 1e-2, 1e-7  # learning rates
SETTINGS = (
    "prepare.val_frac=0.3",
    "tune.scheduler=asha",
    f"tune.grace_epochs={EPOCHS // 2}",
    "tune.reduction_factor=2",
    "tune.max_concurrent=2",
    "seed=9",  # of the order: each trial without a backbone comes before another, the one that learns nothing last
)


def read_trials(spec: RunSpec) -> dict[tuple[bool, float], dict[str, Any]]:
    """(whether its backbone exists, learning rate) -> its record."""
    records = [json.loads(path.read_text()) for path in (spec.run_dir / "trials").glob("*/trial.json")]
    parameters = [record["parameters"] for record in records]
    keys = [(Path(values["model.backbone"]).is_dir(), values["train.lr"]) for values in parameters]
    return dict(zip(keys, records, strict=True))


def wait_until_half_done(spec: RunSpec, sweep: subprocess.Popen[bytes], timeout_s: float = 300) -> None:
    """Until a trial has ended and the best one is under way: on a busy machine another may be first with an epoch."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and sweep.poll() is None:
        trials = read_trials(spec)
        is_one_over = any(trial["status"] in ("finished", "failed") for trial in trials.values())
        best = trials.get((True, GOOD), {"status": "waiting"})
        if is_one_over and best["status"] == "running" and 0 < len(best["epochs"]) < EPOCHS:
            return
        time.sleep(0.02)
    raise AssertionError("the sweep was never half done")


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> RunSpec:
    """A sweep whose process was killed when it was half done."""
    folder = tmp_path_factory.mktemp("tune")
    backbones = [str(folder / "backbone"), str(folder / "missing")]
    parameters = {"model.backbone": backbones, "train.lr": [GOOD, LEARNS_NOTHING]}
    base = [*build_base(folder, EPOCHS), *SETTINGS, f"tune.parameters={json.dumps(parameters)}"]
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
    address = ray.get_runtime_context().gcs_address
    of_others = find_left(address)  # of trainings that this session ran before
    before = read_trials(spec)
    corpus_written_ns = (spec.corpus_dir / "manifest.json").stat().st_mtime_ns
    result = tune.run(spec)

    # --- trials
    trials = read_trials(spec)
    assert result["trials"] == {"finished": 1, "stopped": 1, "failed": 2}
    assert result["best"]["parameters"]["train.lr"] == GOOD
    winner, stopped = trials[True, GOOD], trials[True, LEARNS_NOTHING]
    assert (winner["status"], len(winner["epochs"])) == ("finished", EPOCHS)
    assert (stopped["status"], len(stopped["epochs"])) == ("stopped", EPOCHS // 2)
    for lr in (GOOD, LEARNS_NOTHING):
        assert trials[False, lr]["status"] == "failed"
        assert trials[False, lr]["reason"].startswith("InputError: ")
        assert "missing" in trials[False, lr]["reason"]
    done = before[True, GOOD]["epochs"]
    assert 0 < len(done) < EPOCHS
    assert winner["epochs"][: len(done)] == done, "what was done before the kill stands"
    assert (spec.corpus_dir / "manifest.json").stat().st_mtime_ns == corpus_written_ns

    # --- MLflow: one sweep, and nested in it a run for each trial that came to train
    client = MlflowClient(spec.tracking_uri)
    experiment = client.get_experiment_by_name(spec.tracking.experiment)
    assert experiment is not None
    runs = {run.info.run_id: run for run in client.search_runs([experiment.experiment_id])}
    parent = runs.pop(result["mlflow_run_id"])
    assert parent.info.status == "FINISHED"
    assert all(run.data.tags[PARENT_TAG] == parent.info.run_id for run in runs.values())
    by_name = {run.info.run_name: run for run in runs.values()}
    assert by_name.keys() == {winner["name"], stopped["name"]}
    assert by_name[winner["name"]].info.status == "FINISHED"
    assert by_name[stopped["name"]].info.status == "KILLED"
    assert by_name[stopped["name"]].data.tags["toolmm.trial_end"] == "stopped by scheduler"
    for record in (winner, stopped):
        losses = history(spec, by_name[record["name"]].info.run_id, "train/loss")
        assert list(losses) == list(range(len(losses)))
        assert len(losses) >= record["epochs"][-1]["step"]
    artifacts = {artifact.path for artifact in client.list_artifacts(parent.info.run_id, "sweep")}
    assert artifacts == {"sweep/report.md", "sweep/learning_curves.png", "sweep/parallel_coordinates.png"}

    # --- the winner
    assert result["promoted"]
    best_score = max(epoch["val/score"] for epoch in winner["epochs"])
    champion = get_champion(spec.tracking_uri, spec.tracking.registered_model)
    assert champion is not None
    assert champion.score is not None
    assert (champion.score.value, champion.run_id) == (best_score, by_name[winner["name"]].info.run_id)
    assert (Path(result["bundle"]) / "bundle.json").is_file()

    # --- nothing is left running: a cleaner of Ray Train's sees to placement groups every second
    deadline = time.monotonic() + 30
    while left := {one: what for one, what in find_left(address).items() if one not in of_others}:
        assert time.monotonic() < deadline, left
        time.sleep(0.5)


def find_left(address: str) -> dict[str, str]:
    """Id -> kind and state of Ray Train's actors of this process and of placement groups. Others' end is Ray's."""
    job = ray.get_runtime_context().get_job_id()
    actors: list[Any] = list_actors(address, filters=[("state", "!=", "DEAD"), ("job_id", "=", job)])
    groups: list[Any] = list_placement_groups(address, filters=[("state", "=", "CREATED")])
    kinds = ("TrainWorker", "TrainController")
    trainers = [actor for actor in actors if any(kind in actor.class_name for kind in kinds)]
    found = {actor.actor_id: f"{actor.class_name} {actor.state}" for actor in trainers}
    return found | {group.placement_group_id: f"placement group {group.state}" for group in groups}


def test_a_sweep_that_is_over_is_not_run_again(killed: RunSpec) -> None:
    """Trials without a backbone are not listed any more; a failed one would be tried again."""
    tree = killed.model_dump(mode="json")
    del tree["tune"]["parameters"]["model.backbone"][1]
    result = tune.run(RunSpec.model_validate(tree))
    assert result["trials"] == {"finished": 1, "stopped": 1, "failed": 2}
    assert not result["promoted"]
    assert "it is the champion already (version 1)" in result["promotion"]
