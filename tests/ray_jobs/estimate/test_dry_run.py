"""`train --dry-run`: every config, the papers' numbers, and where the estimated time comes from."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from transformers import PretrainedConfig

import ray_jobs.estimate.dry_run
from data_pipeline.errors import InputError
from model.llm.config import ModelConfig
from ray_jobs.config import config_names, load_run_spec
from ray_jobs.estimate.dry_run import run_dry
from ray_jobs.estimate.speed import MicroStep


@pytest.mark.parametrize("name", config_names())
def test_every_config_has_a_dry_run(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for constant, value in (("TOTAL_S", 0.1), ("PASS_S", 0.1), ("MIN_PASSES", 1)):
        monkeypatch.setattr(f"ray_jobs.estimate.speed.{constant}", value)
    report = run_dry(load_run_spec(name, [f"runs_dir={tmp_path}"]))
    spec = load_run_spec(name, [])
    printed = capsys.readouterr().out
    for part in ("parameters", "GiB per worker", "<- this config", "assumed", "tokens per step", "estimated time"):
        assert part in printed
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert list(report["memory_gib"]) == ["0", "1", "2", "3"]
    totals = [row["total"] - row["buckets"] for row in report["memory_gib"].values()]
    assert totals[1:] == sorted(totals[1:], reverse=True), "a higher stage never takes more"
    assert report["rows_per_step"] == pytest.approx(spec.train.global_batch_size, rel=0.06)
    assert report["hours"] > 0
    assert report["corpus_is_assumed"]
    if spec.train.use_gpu:
        assert report["memory_gib"][str(spec.train.zero_stage)]["total"] < 36, "cluster.yaml's GPUs have 40 GB"


def test_the_papers_own_way_takes_the_papers_steps(tmp_path: Path) -> None:
    """oracle/README.md, section 5: 9,775 steps, a video row seen some 140 times an epoch."""
    ways = ["train.layout=rows", "train.sampler=paper", "train.schedule=reference", f"runs_dir={tmp_path}"]
    report = run_dry(load_run_spec("vicuna_7b", ways))
    assert report["steps"] == 9775
    assert report["micro_steps_per_step"] == 4
    assert report["seen"]["video"] == pytest.approx(5 * 31280 / 224)
    packed = run_dry(load_run_spec("vicuna_7b", [f"runs_dir={tmp_path}"]))
    assert packed["seen"] == {"audio": 5, "image": 5, "text": 5, "video": 5}
    assert packed["tokens_per_step"] < 0.5 * report["tokens_per_step"]


def test_what_cannot_be_known_or_done_is_said(tmp_path: Path) -> None:
    place = f"runs_dir={tmp_path}"
    with pytest.raises(InputError, match="nothing is known of the size of source 'jsonl' before `prepare` has run"):
        run_dry(load_run_spec("demo", ["prepare.source=jsonl", place]))
    with pytest.raises(InputError, match="shape of backbone 'nobody/nothing' is not known here"):
        run_dry(load_run_spec("demo", ["model.backbone=nobody/nothing", place]))
    with pytest.raises(InputError, match=r"set train\.layout=rows"):
        run_dry(load_run_spec("demo", ["train.sampler=paper", place]))


def test_the_time_on_cpus_is_measured_in_the_dtype_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that trains twenty times as fast in bfloat16, or as slowly, is estimated so."""
    asked = []

    def measure(
        config: ModelConfig, shape: PretrainedConfig, micro_step: MicroStep, threads: int, workers: int
    ) -> float:
        asked.append((config.dtype, config.encoder_dim, shape.hidden_size, micro_step, threads, workers))
        return {"float32": 1e9, "bfloat16": 20e9}[config.dtype]

    monkeypatch.setattr(ray_jobs.estimate.dry_run, "measure_training_flops", measure)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    base = [f"runs_dir={tmp_path}", "train.workers=4", "train.cpus_per_worker=2"]
    slow, fast = (run_dry(load_run_spec("demo", [*base, f"model.dtype={dtype}"])) for dtype in ("float32", "bfloat16"))
    for report, one_worker in ((slow, 1e9), (fast, 20e9)):  # a step has more operations in bfloat16: longer padding
        operations = report["steps"] * report["flops_per_step"]
        assert report["hours"] == pytest.approx(operations / (3 * one_worker) / 3600)
    assert slow["flops_per_s"] == 3e9, "of four workers with two threads each three find cores"
    assert fast["speed"] == "at 60 GFLOP/s, measured here in bfloat16"
    dtype, encoder_dim, width, micro_step, threads, workers = asked[0]
    assert (dtype, encoder_dim, width, threads, workers) == ("float32", 128, 256, 2, 3)
    assert micro_step.tokens == pytest.approx(slow["tokens_per_step"] / slow["micro_steps_per_step"] / 4)
    assert micro_step.answers == pytest.approx(slow["rows"] / slow["questions"])
    assert micro_step.question_tokens > micro_step.answers * micro_step.answer_tokens
