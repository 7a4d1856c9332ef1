"""A backbone that lies in parts on two ranks from the first byte."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from model.llm.config import ModelConfig
from model.llm.tool_llm import ToolLLM
from model.tiny.backbone import build_tiny_backbone
from ray_jobs.estimate.cost import ModelSize, compute_start_bytes
from ray_jobs.estimate.shapes import load_shape
from ray_jobs.train.partitioned import build_model
from ray_jobs.train_options import TrainOptions

sys.path.insert(0, str(Path(__file__).parents[2] / "model"))
from toy_batches import ENCODER_DIM, build_toy_backbone, toy_texts

REPO = Path(__file__).resolve().parents[3]


@pytest.mark.slow
def test_no_rank_ever_holds_the_whole_backbone(tmp_path: Path) -> None:
    backbone = build_tiny_backbone(
        tmp_path / "backbone", toy_texts(), hidden_size=768, n_layers=12, n_heads=8, intermediate_size=2048
    )
    path = os.pathsep.join([str(REPO), str(REPO / "tests/model")])
    environment = os.environ | {"PYTHONPATH": path, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    script = Path(__file__).parents[1] / "partitioned_rank.py"
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(tmp_path), str(backbone)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        outputs = [rank.communicate(timeout=550) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert all(rank.returncode == 0 for rank in ranks), "\n".join(errors[-4000:] for _, errors in outputs)
    config = ModelConfig(backbone=str(backbone), encoder_dim=ENCODER_DIM)
    size = ModelSize.measure(ToolLLM.sketch(config, load_shape(str(backbone))[0]), on_gpu=False)
    for output, _ in outputs:
        found = json.loads(output.splitlines()[-1])
        assert found["float32"]["model"] == 2 * found["bfloat16"]["model"] > 300e6
        assert (
            found["float32"]["peak"] <= 0.65 * found["float32"]["model"]
        )  # the second finds memory that is free by then
        for outcome in found.values():
            assert outcome["parted"] == outcome["whole"], "the same training, bit for bit"
        start = compute_start_bytes(size, 3, len(ranks), number_bytes=4, is_cast=False, is_whole=False)
        assert found["float32"]["peak"] == pytest.approx(start.own, rel=0.25), "what `train --dry-run` says"


def test_other_stages_load_it_whole(tmp_path: Path) -> None:
    config = ModelConfig(backbone=str(build_toy_backbone(tmp_path / "backbone")), encoder_dim=4)
    mllm = build_model(config, TrainOptions.model_validate({"zero_stage": 2}))
    assert all(parameter.numel() for parameter in mllm.parameters())
