"""What ASHA saves: a sweep of twelve trials with it against the full grid, by optimizer steps, and whether both agree.

A text corpus whose questions' verb determines the tool, a tiny Llama, twelve trials of learning rate x rank. Steps are
those that the trials' trainings really took, also those between a report and the scheduler's decision.

    python -m ray_jobs.bench.sweep [FOLDER]     (a part of `make bench`; some twenty minutes on two cores)
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mlflow.tracking import MlflowClient

from data_pipeline.corpus.files import Corpus
from data_pipeline.records.prompts import render_prompt, render_target
from model.tiny.backbone import build_tiny_backbone
from ray_jobs import prepare
from ray_jobs.cluster import connect
from ray_jobs.config import RayOptions, RunSpec
from ray_jobs.tracking.runs import PARENT_TAG
from ray_jobs.tune import job as tune

TOOLS = ("translator", "summary", "classifier", "rhymes", "shortener", "grammar", "speech", "tagger", "search", "mail")
VERBS = ("translate", "summarise", "classify", "rhyme", "shorten", "correct", "pronounce", "tag", "look up", "send")
NOUNS = tuple(f"{kind} {number}" for kind in ("letter", "poem", "report", "essay", "recipe") for number in range(1, 9))
EPOCHS = 9
PARAMETERS = {"train.lr": [1e-4, 5e-4, 2e-3, 1e-2], "model.lora_r": [4, 8, 16]}


def run(folder: Path | None = None) -> dict[str, Any]:
    """Run both sweeps, print a table, and return the numbers.

    Args:
        folder: kept, so that a benchmark that was broken off goes on; None for a temporary one.
    """
    if folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            return run(Path(temporary))
    backbone = _write_inputs(folder)
    results = {
        name: _measure(_build_spec(folder, backbone, name, scheduler))
        for name, scheduler in (("full grid", "none"), ("ASHA", "asha"))
    }
    grid, asha = results["full grid"], results["ASHA"]
    difference = abs(grid["best_score"] - asha["best_score"])
    result = {
        "full_grid": grid,
        "asha": asha,
        "steps_frac": asha["steps"] / grid["steps"],
        "same_winner": grid["best"] == asha["best"],
        "score_difference": difference,
        "within_standard_error": difference <= grid["standard_error"],
    }
    print(f"\n{'sweep of 12 trials':<22}{'steps':>8}{'seconds':>9}{'best score':>12}  best trial")
    for name, numbers in results.items():
        shown = f"{numbers['steps']:>8}{numbers['seconds']:>9.0f}{numbers['best_score']:>12.4f}"
        print(f"{name:<22}{shown}  {numbers['best']}")
    print(
        f"ASHA took {result['steps_frac']:.0%} of the steps; the winners' scores differ by {difference:.4f}, one "
        f"standard error is {grid['standard_error']:.4f}"
    )
    return result


def _measure(spec: RunSpec) -> dict[str, Any]:
    prepare.run(spec)
    start = time.perf_counter()
    result = tune.run(spec)
    seconds = time.perf_counter() - start
    score = result["best"]["best_score"]
    n_validated = sum(1 for _ in Corpus.open(spec.corpus_dir).records("val"))
    return {
        "steps": count_steps(spec, result["mlflow_run_id"]),
        "seconds": round(seconds, 1),
        "best": json.dumps(result["best"]["parameters"]),
        "best_score": score,
        "standard_error": math.sqrt(max(score * (1 - score), 1 / n_validated) / n_validated),
        "trials": result["trials"],
    }


def count_steps(spec: RunSpec, parent_run_id: str) -> int:
    """Optimizer steps of all trials of a sweep, as they were logged."""
    client = MlflowClient(spec.tracking_uri)
    experiment = client.get_experiment_by_name(spec.tracking.experiment)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], f"tags.`{PARENT_TAG}` = '{parent_run_id}'")
    steps = [[metric.step for metric in client.get_metric_history(run.info.run_id, "train/loss")] for run in runs]
    return sum(max(taken) + 1 for taken in steps if taken)


def _write_inputs(folder: Path) -> Path:
    """The records and their catalogue; returns the backbone."""
    tool_ids = dict(zip(VERBS, (f"lab/{tool}" for tool in TOOLS), strict=True))
    rows = [
        {"instruction": f"please {verb} {noun}", "tools": [tool_id]}
        for noun in NOUNS
        for verb, tool_id in tool_ids.items()
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "catalog.txt").write_text("\n".join(tool_ids.values()) + "\n", encoding="utf-8")
    texts = ["".join(filter(None, render_prompt(str(row["instruction"]), False))) for row in rows]
    return build_tiny_backbone(
        folder / "backbone",
        texts + [render_target(tool_id) for tool_id in tool_ids.values()],
        vocab_size=400,
        hidden_size=48,
        n_layers=2,
        n_heads=4,
        intermediate_size=96,
        max_positions=256,
    )


def _build_spec(folder: Path, backbone: Path, name: str, scheduler: str) -> RunSpec:
    return RunSpec.model_validate(
        {
            "name": name.replace(" ", "-"),
            "runs_dir": folder,
            "prepare": {"source": "jsonl", "path": folder / "records.jsonl", "val_frac": 0.4},
            "model": {
                "backbone": str(backbone),
                "lora_alpha": 16,
                "lora_dropout": 0,
                "lora_target": "all-linear",
                "modules_to_save": ["embed_tokens", "lm_head"],
            },
            "train": {"epochs": EPOCHS, "global_batch_size": 4, "pack_tokens": 256, "warmup_steps": 2},
            "tune": {"parameters": PARAMETERS, "scheduler": scheduler, "grace_epochs": 1, "reduction_factor": 3},
        }
    )


if __name__ == "__main__":
    connect(RayOptions())
    print(json.dumps(run(Path(sys.argv[1]).absolute() if len(sys.argv) > 1 else None)))
