"""`tune`: Ray Tune over a function that launches the same training as `train`, once for each trial.

Trials share the sweep's corpus, feature lake and backbone. Killed and started again, a sweep goes on: trials that ended
are not run again, and those that had begun go on from their checkpoints in their MLflow runs.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from typing import Any

import numpy as np
import ray
from ray import tune as ray_tune

from data_pipeline import storage
from data_pipeline.batches.token_shards import hash_tokenizer
from data_pipeline.corpus.files import MANIFEST_FILE, Corpus
from data_pipeline.errors import InputError
from model.llm.backbone import load_tokenizer
from ray_jobs import prepare
from ray_jobs.cluster import connect, ray_storage
from ray_jobs.config import RunSpec
from ray_jobs.embed import job as embed
from ray_jobs.export import describe_bundle, describe_registered, register, write_bundle
from ray_jobs.tracking.model_versions import get_champion
from ray_jobs.tracking.runs import RunLogger, open_run
from ray_jobs.train.features import EMBED_FILE, MediaVectors, load_media_vectors
from ray_jobs.train.inputs import resolve_model
from ray_jobs.train.run_folder import only_one
from ray_jobs.tune.driver import SweepRun, run_trial
from ray_jobs.tune.recorder import SweepRecorder
from ray_jobs.tune.report import REPORT_FILE, render_trials, write_sweep_report
from ray_jobs.tune.search import DRIVER_CPUS, ListedTrials, OptunaTrials, SameScheduleHalving, choose_concurrency
from ray_jobs.tune.space import Parameters, Space, check_all, fingerprint_sweep, parse_space
from ray_jobs.tune.trials import TrialFolders, TrialRecord, find_best

REPORT_FOLDER = "sweep"
LOCKED_JOB = "tune"  # a sweep has its folder's corpus, report and bundle to itself, whatever it varies
TUNE_ENV = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the sweep; Tune would return as if it were complete
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that fails before its first epoch reports nothing
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # CSV, JSON and TensorBoard files beside our records
    "RAY_AIR_NEW_OUTPUT": "0",  # with verbose=0: nothing; our own lines say it
}


def run(spec: RunSpec) -> dict[str, Any]:
    """The CLI's job: run what is left of the sweep, report it, export its best trial.

    Raises:
        InputError: settings that cannot be varied so, a sweep of this name that runs already, a cluster too small for
            one trial, or no trial that finished.
    """
    space = parse_space(spec)
    listed = list_trials(spec, space)
    with only_one(spec.run_dir, LOCKED_JOB, "change name to run another sweep beside it"):
        return run_checked(spec, space, listed)


def run_checked(spec: RunSpec, space: Space, listed: list[Parameters] | None) -> dict[str, Any]:
    """`run` of a space, and the trials in it, that have been checked, while no other sweep has this name."""
    connect(spec.ray)
    corpus = prepare_shared(spec)
    concurrency = choose_concurrency(
        spec.train, spec.tune.max_concurrent, [node["Resources"] for node in ray.nodes() if node["Alive"]]
    )
    fingerprint, tokenizers = identify_sweep(spec, space, corpus)
    parent_run_id = open_run(
        spec.tracking_uri,
        spec.tracking.experiment,
        f"{spec.name}-sweep-{fingerprint}",
        f"sweep-{fingerprint}",
        spec.describe(),
    )
    tracker = RunLogger(spec.tracking_uri, parent_run_id, spool_dir=spec.spool_dir)
    tracker.log_tags({"toolmm.kind": "sweep"})
    sweep = SweepRun(space, fingerprint, TrialFolders(spec.run_dir, fingerprint), parent_run_id, tokenizers)
    try:
        records = run_trials(spec, sweep, listed, concurrency)
        result = conclude(spec, sweep, records, tracker)
    except BaseException as error:
        tracker.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    tracker.finish()
    return result


def list_trials(spec: RunSpec, space: Space) -> list[Parameters] | None:
    """All trials of a grid or a random search; None where Optuna proposes them. Whatever may come of it is checked.

    With a scheduler that compares trials, the order is shuffled: along a grid each trial may be better than the last,
    and none would be stopped.
    """
    if spec.tune.search == "optuna":
        check_all(space, space.corners())
        return None
    if spec.tune.search == "random":
        trials = space.draw(spec.seed, spec.tune.num_trials)
    else:
        trials = space.grid()
        if spec.tune.scheduler != "none":
            trials = [trials[i] for i in np.random.default_rng(spec.seed).permutation(len(trials))]
    check_all(space, trials)
    return trials


def prepare_shared(spec: RunSpec) -> Corpus:
    """What all trials read, made once where it is missing: corpus and media vectors.

    Raises:
        InputError: nothing to compare trials by.
    """
    if not storage.exists(storage.open_folder(spec.corpus_dir) / MANIFEST_FILE):
        prepare.run(spec)
    corpus = Corpus.open(spec.corpus_dir)
    counts = corpus.manifest["counts"]
    n_media = sum(counts[split]["distinct_media"] for split in ("train", "val"))
    if n_media and not storage.exists(spec.run_dir / EMBED_FILE):
        embed.run(spec)
    n_validated = spec.train.validation_questions + spec.train.validation_dialogues
    if not n_validated or not counts["val"]["questions"]:
        raise InputError(
            "trials are compared by their validation score, and there is nothing to validate; prepare with "
            "prepare.val_frac above 0 and leave train.validation_questions above 0."
        )
    return corpus


def identify_sweep(spec: RunSpec, space: Space, corpus: Corpus) -> tuple[str, dict[str, str]]:
    """The sweep's fingerprint, and of each backbone the hash of its tokenizer; the vectors are let go of again.

    Raises:
        InputError: the vectors do not belong to the corpus.
    """
    vectors = load_media_vectors(spec, corpus, "train", "val")
    fingerprint = fingerprint_sweep(space, corpus.data_hash, vectors.encoder_id, vectors.rows)
    backbones = list_backbones(space, TrialFolders(spec.run_dir, fingerprint))
    return fingerprint, hash_tokenizers(spec, corpus, vectors, backbones)


def list_backbones(space: Space, folders: TrialFolders) -> list[str]:
    """Of all trials of the sweep, those from before a restart too."""
    path, own = "model.backbone", space.base.model.backbone
    listed = space.domains.get(path, [own])
    known = [record.parameters.get(path, own) for record in folders.load()]
    return list(dict.fromkeys([*(listed if isinstance(listed, list) else []), *known]))


def hash_tokenizers(spec: RunSpec, corpus: Corpus, vectors: MediaVectors, backbones: list[str]) -> dict[str, str]:
    """Backbone -> hash of its tokenizer, and "" where it cannot be loaded. What has to be made is made here, once."""
    hashes = dict.fromkeys(backbones, "")
    for backbone in backbones:
        one = spec.model_copy(update={"model": spec.model.model_copy(update={"backbone": backbone})})
        try:
            hashes[backbone] = hash_tokenizer(load_tokenizer(resolve_model(one, corpus, vectors).backbone))
        except Exception:  # noqa: BLE001 - its trials will fail and say why; the others need not
            continue
    return hashes


def run_trials(spec: RunSpec, sweep: SweepRun, listed: list[Parameters] | None, concurrency: int) -> list[TrialRecord]:
    """Run the trials that are not over; returns the records of all that the sweep has had."""
    records = {record.name: record for record in load_known(spec, sweep)}
    over = {name for name, record in records.items() if record.is_over}
    if listed is None:
        num_trials = max(spec.tune.num_trials, len(records))
        search: Any = OptunaTrials(sweep.space, spec.seed, spec.tune.num_trials, records)
        num_left = num_trials - len(over)
    else:
        left = [trial for trial in listed if sweep.name(trial) not in over]
        search, num_left = ListedTrials(left), len(left)
        num_trials = num_left + len(over)
    if over:
        print(f"sweep {sweep.fingerprint}: {len(over)} trial(s) are over, {num_left} left")
    if not num_left:
        return list(records.values())
    print(f"sweep {sweep.fingerprint}: {num_left} trial(s), {concurrency} at a time", flush=True)
    scheduler = None
    if spec.tune.scheduler == "asha":
        scheduler = SameScheduleHalving(spec.tune, spec.train.epochs, list(records.values()))
    recorder = SweepRecorder(spec, sweep, records, num_trials, concurrency)
    os.environ |= TUNE_ENV
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    ray_tune.Tuner(
        ray_tune.with_resources(ray_tune.with_parameters(run_trial, sweep=sweep), {"CPU": DRIVER_CPUS}),
        tune_config=ray_tune.TuneConfig(
            search_alg=search,
            scheduler=scheduler,
            num_samples=num_left,
            max_concurrent_trials=concurrency,
            trial_name_creator=lambda trial: sweep.name(trial.config),
            trial_dirname_creator=lambda trial: sweep.name(trial.config),
        ),
        run_config=ray_tune.RunConfig(
            name=f"sweep-{sweep.fingerprint}",
            **ray_storage(spec.run_dir),
            callbacks=[recorder],
            failure_config=ray_tune.FailureConfig(max_failures=spec.train.max_failures),
            verbose=0,
        ),
    ).fit()
    recorder.settle_runs()
    return list(records.values())


def load_known(spec: RunSpec, sweep: SweepRun) -> list[TrialRecord]:
    """Records from before a restart, brought up to what the trials' folders hold; none of another tokenizer's."""
    known = [record for record in sweep.folders.load() if record.name == sweep.name(record.parameters)]
    for record in known:
        if sweep.folders.has_summary(record.name):
            sweep.folders.close(record)
        elif record.status == "stopped" and spec.tune.scheduler == "none":
            record.status = "waiting"  # it goes on from its checkpoint
    return known


def conclude(spec: RunSpec, sweep: SweepRun, records: list[TrialRecord], tracker: RunLogger) -> dict[str, Any]:
    """Export the best trial, promote it if it deserves it, write and log the report."""
    best = find_best(records)
    facts: dict[str, Any] = {"sweep": sweep.fingerprint}
    result: dict[str, Any] = {"best": None}
    if best is not None:
        result = _export_best(spec, sweep, best)
        facts |= {
            "best trial": f"{best.name}, score {best.best_score:.4f} after {best.epochs_run} epochs",
            "champion": f"{'promoted' if result['promoted'] else 'not promoted'}: {result['promotion']}",
            "bundle": result["bundle"],
        }
        tracker.log_metrics({"sweep/best_score": best.best_score or 0.0})
    counts = {
        status: sum(record.status == status for record in records) for status in ("finished", "stopped", "failed")
    }
    steps = sum(record.steps for record in records)
    tracker.log_metrics({"sweep/steps": steps} | {f"sweep/trials_{status}": n for status, n in counts.items()})
    facts |= {"trials": ", ".join(f"{n} {status}" for status, n in counts.items()), "steps of all trials": steps}
    folder = spec.run_dir / REPORT_FOLDER
    with storage.replacing_folder(folder) as new, storage.staged_locally(new) as local:
        write_sweep_report(local, spec.name, records, facts)
    report = storage.open_folder(folder) / REPORT_FILE
    tracker.log_artifacts(storage.fetch_folder(folder), REPORT_FOLDER)
    print(f"\n{render_trials(records)}\n")
    for key, value in facts.items():
        print(f"{key:<22}{value}")
    print(f"{'report':<22}{report}")
    if best is None:
        raise InputError(f"no trial of the sweep finished with a score ({explain_no_winner(records)}); see {report}.")
    return {
        "sweep": sweep.fingerprint,
        "mlflow_run_id": sweep.parent_run_id,
        "trials": counts,
        "steps": steps,
        "report": str(report),
    } | result


def explain_no_winner(records: list[TrialRecord]) -> str:
    """Why no trial can be the best, in a few words."""
    if reasons := [record.reason for record in records if record.reason]:
        return reasons[0]
    is_without_score = any(record.status == "finished" for record in records)
    return "none reported one" if is_without_score else "the scheduler stopped all"


def _export_best(spec: RunSpec, sweep: SweepRun, best: TrialRecord) -> dict[str, Any]:
    """Leave the best trial in the sweep's folder as `train` and `export` would, and compare it with the champion."""
    summary = sweep.folders.load_summary(best.name)
    summary.save(spec.run_dir)  # so that `evaluate` and `serve` take it
    trial_spec = sweep.space.trial_spec(best.parameters)
    bundle = write_bundle(trial_spec, summary)
    shown = dataclasses.asdict(best) | {"best_score": best.best_score, "steps": best.steps}
    result = {
        "best": {key: shown[key] for key in ("name", "parameters", "best_score", "steps")},
        **describe_bundle(bundle),
    }
    champion = get_champion(spec.tracking_uri, spec.tracking.registered_model)
    if champion is not None and champion.run_id == summary.mlflow_run_id:
        return result | {
            "model_version": champion.version,
            "promoted": False,
            "promotion": f"it is the champion already (version {champion.version})",
        }
    return result | describe_registered(register(trial_spec, summary, bundle))
