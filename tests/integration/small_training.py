"""A corpus of texts and a very small LLM that the training tests share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from mlflow.tracking import MlflowClient

from data_pipeline.records.prompts import render_prompt, render_target
from model.tiny.backbone import build_tiny_backbone
from ray_jobs.config import RunSpec, load_run_spec
from ray_jobs.train.checkpoint import CheckpointStore, load_cursor, load_moments, load_parameters
from ray_jobs.train.job import TrainSummary
from ray_jobs.train.validation import SCORE_KEY

VERBS = {
    "translate": "lab/translator",
    "summarise": "lab/summary",
    "classify": "lab/classifier",
    "rhyme": "poetry/rhymes",
    "shorten": "lab/summary-short",
    "correct": "lab/grammar",
    "pronounce": "sound/speech",
    "tag": "lab/tagger",
}
TRAIN_KEYS = ("train/loss", "train/grad_norm", "train/lr", "train/epoch_loss")
NOUNS = ("letter", "poem", "report", "email", "essay", "speech", "review", "recipe")


def write_records(folder: Path) -> Path:
    """64 questions whose verb determines the tool."""
    rows = [
        {"instruction": f"please {verb} this {noun}", "tools": [tool_id]}
        for noun in NOUNS
        for verb, tool_id in VERBS.items()
    ]
    path = folder / "records.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "catalog.txt").write_text("\n".join(VERBS.values()) + "\n", encoding="utf-8")
    return path


def build_base(folder: Path, epochs: int) -> list[str]:
    """Overrides that all runs over the corpus in `folder` share."""
    records = write_records(folder)
    texts = [
        "".join(filter(None, render_prompt(f"please {verb} this {noun}", False))) for verb in VERBS for noun in NOUNS
    ]
    backbone = build_tiny_backbone(
        folder / "backbone",
        texts + [render_target(tool_id) for tool_id in VERBS.values()],
        vocab_size=400,
        hidden_size=48,
        n_layers=2,
        n_heads=4,
        intermediate_size=96,
        max_positions=256,
    )
    return [
        f"runs_dir={folder / 'runs'}",
        "prepare.source=jsonl",
        f"prepare.path={records}",
        "prepare.val_frac=0.15",
        f"model.backbone={backbone}",
        "model.lora_r=8",
        "model.lora_alpha=16",
        "model.lora_dropout=0",
        "model.lora_target=all-linear",
        "model.modules_to_save=[embed_tokens, lm_head]",
        f"train.epochs={epochs}",
        "train.global_batch_size=4",
        "train.pack_tokens=128",
        "train.lr=1e-2",
        "train.warmup_steps=2",
        "train.max_failures=0",
        "evaluate.batch_size=8",
        "evaluate.top_k=3",
        "evaluate.free_max_new_tokens=16",
    ]


def build_spec(base: list[str], name: str, *overrides: str) -> RunSpec:
    return load_run_spec(None, [*base, f"name={name}", *overrides])


def history(spec: RunSpec, run_id: str, key: str) -> dict[int, float]:
    """step -> value; a step that was logged twice is a failure."""
    metrics = MlflowClient(spec.tracking_uri).get_metric_history(run_id, key)
    steps = [metric.step for metric in metrics]
    assert len(set(steps)) == len(steps), f"{key} was logged twice at a step"
    return {metric.step: metric.value for metric in metrics}


def find_step(spec: RunSpec) -> int:
    """The step of the run's last checkpoint; 0 where there is none."""
    stores = [CheckpointStore(folder, SCORE_KEY) for folder in (spec.run_dir / "checkpoints").glob("*")]
    return max((load_cursor(last).step for store in stores if (last := store.find_last()) is not None), default=0)


def assert_equal_runs(
    undisturbed: tuple[RunSpec, TrainSummary], spec: RunSpec, summary: TrainSummary, keys: Sequence[str] = TRAIN_KEYS
) -> None:
    """What MLflow has under these keys, and final weights, bit for bit; one MLflow run without double steps."""
    whole_spec, whole = undisturbed
    for key in keys:
        expected = history(whole_spec, whole.mlflow_run_id, key)
        assert expected, key
        assert history(spec, summary.mlflow_run_id, key) == expected, key
    for load in (load_parameters, load_moments):
        found, expected_state = load(Path(summary.last_checkpoint)), load(Path(whole.last_checkpoint))
        assert found.keys() == expected_state.keys()
        assert all(torch.equal(found[name], expected_state[name]) for name in found)
    assert summary.metrics == whole.metrics
    client = MlflowClient(spec.tracking_uri)
    experiment = client.get_experiment_by_name(spec.tracking.experiment)
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_id, run.info.status) == (summary.mlflow_run_id, "FINISHED")
