"""The scale model beside trainings on this machine's CPUs, with one worker and with two: no test.

    python tests/measurements/scale_check.py

A tiny backbone, text questions. What a core computes is timed just before each training, as `train --dry-run` does it;
gloo's rate over loopback is assumed. It prints the seconds of an optimizer step, predicted and as the trainings logged
them (the median).
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from mlflow.tracking import MlflowClient

from model.tiny.backbone import build_tiny_backbone
from ray_jobs.bench.train import build_questions
from ray_jobs.config import RunSpec, load_run_spec
from ray_jobs.estimate.dry_run import run_dry
from ray_jobs.estimate.scale import Cluster, Work, predict

STEPS = 24
LOOPBACK_BYTES_PER_S = 1e9  # assumed
WORKERS = (1, 2)


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="scale_check_") as name:
        folder = Path(name)
        overrides = write_inputs(folder)
        run_verb("prepare", overrides)
        for workers in WORKERS:
            more = [*overrides, f"train.workers={workers}", f"train.lr={workers}e-4"]
            spec = load_run_spec(None, more)
            flops_per_s = run_dry(spec)["flops_per_s"] / workers
            here = Cluster("here", 2, flops_per_s, LOOPBACK_BYTES_PER_S, LOOPBACK_BYTES_PER_S, 1e6, 1e9, 1e9, 0.0, 0.0)
            predicted = predict(here, Work.measure(spec), workers)
            run_verb("train", more)
            found = read_steps(spec)
            parts = f"{predicted.compute_s:.3f} computing at {flops_per_s / 1e9:.1f} GFLOP/s a worker"
            print(f"{workers} worker(s), s a step: predicted {predicted.step_s:.3f} ({parts}, ", end="")
            print(f"{predicted.traffic_s:.4f} traffic), median of {len(found)} steps {statistics.median(found):.3f}")
            print("steps: " + " ".join(f"{seconds:.2f}" for seconds in found))


def write_inputs(folder: Path) -> list[str]:
    """Records, catalogue and backbone; the overrides of a run with them."""
    questions, texts = build_questions()
    rows = [json.dumps({"instruction": text, "tools": tools}) + "\n" for text, tools in questions]
    (folder / "records.jsonl").write_text("".join(rows), encoding="utf-8")
    tool_ids = sorted({tool for _, tools in questions for tool in tools})
    (folder / "catalog.txt").write_text("\n".join(tool_ids) + "\n", encoding="utf-8")
    backbone = build_tiny_backbone(folder / "backbone", texts)
    return [
        f"runs_dir={folder}",
        "name=check",
        "prepare.source=jsonl",
        f"prepare.path={folder / 'records.jsonl'}",
        f"model.backbone={backbone}",
        "train.pack_tokens=384",
        f"train.max_steps={STEPS}",
        "train.validation_questions=0",
    ]


def read_steps(spec: RunSpec) -> list[float]:
    """Seconds of each step but the first ones of the run that was logged last."""
    client = MlflowClient(spec.tracking_uri)
    experiment = client.get_experiment_by_name(spec.tracking.experiment)
    assert experiment is not None
    run = client.search_runs([experiment.experiment_id], order_by=["start_time DESC"])[0]
    rows, rates = (client.get_metric_history(run.info.run_id, f"train/{key}") for key in ("rows", "samples_per_s"))
    return [row.value / rate.value for row, rate in zip(rows, rates, strict=True)][4:]


def run_verb(verb: str, overrides: list[str]) -> None:
    env = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    subprocess.run([sys.executable, "-m", "ray_jobs", verb, *overrides], env=env, check=True)


if __name__ == "__main__":
    main()
