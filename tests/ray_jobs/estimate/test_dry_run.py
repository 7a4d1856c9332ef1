"""`train --dry-run`: every config, and the estimated time against a measured step."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.batches.encoding import encode_question
from data_pipeline.batches.packing import build_micro_batch
from data_pipeline.batches.steps import PlanIndex, deal_step, plan_epoch
from data_pipeline.errors import InputError
from model.llm.config import ModelConfig
from model.llm.tool_llm import ToolLLM, to_tensors
from model.tiny.backbone import build_tiny_backbone
from ray_jobs.config import config_names, load_run_spec
from ray_jobs.estimate.cost import ModelSize, compute_flops
from ray_jobs.estimate.dry_run import ASSUMED_UTILIZATION, measure_core_flops, run_dry


@pytest.mark.parametrize("name", config_names())
def test_every_config_has_a_dry_run(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_the_estimated_time_is_that_of_a_measured_run(tmp_path: Path) -> None:
    """The best step of the tiny backbone beside the best matrix products, in turn: a busy machine slows both."""
    texts = [f"please improve picture number {number} for me, it is dark" for number in range(60)]
    folder = build_tiny_backbone(tmp_path / "tiny", texts, vocab_size=400)
    mllm = ToolLLM.build(ModelConfig(backbone=str(folder), encoder_dim=16, lora_target="all-linear")).train()
    questions = [encode_question(mllm.tokenizer, text, False, ["lab/dehaze", "lab/deblur"]) for text in texts]
    index = PlanIndex.from_questions(questions)
    size = ModelSize.measure(mllm, on_gpu=False)
    peaks, rates = [], []
    for pack in deal_step(plan_epoch(index, 0, 0, 1000)[0], index, 1, 512)[0][:2] * 4:
        batch = to_tensors(build_micro_batch(questions, pack, np.full(60, -1)), None, "cpu")
        n_tokens, n_losses = batch["input_ids"].numel(), len(batch["loss_position"])
        peaks.append(measure_core_flops() * torch.get_num_threads())
        start = time.perf_counter()
        mllm(batch).loss_sum.backward()
        flops = compute_flops(size, n_tokens, n_losses, n_tokens**2, gradient_checkpointing=False)
        rates.append(flops / (time.perf_counter() - start))
    estimate_to_measured = max(rates) / (max(peaks) * ASSUMED_UTILIZATION)
    assert 0.4 < estimate_to_measured < 2.5
