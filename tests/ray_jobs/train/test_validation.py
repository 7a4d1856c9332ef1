"""Validation that ranks share out, whatever lies where."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ray_jobs.train.validation import SCORE_KEY

sys.path.insert(0, str(Path(__file__).parents[2] / "model"))  # the ranks import these modules by name as well
sys.path.insert(0, str(Path(__file__).parents[1]))
from toy_batches import build_toy_backbone, build_toy_mllm
from validation_rank import N_QUESTIONS, N_RANKS, build_set, hear

REPO = Path(__file__).resolve().parents[3]


@pytest.mark.slow
def test_ranks_share_the_work_and_find_what_one_finds(tmp_path: Path) -> None:
    backbone = build_toy_backbone(tmp_path / "backbone")
    path = os.pathsep.join([str(REPO), str(REPO / "tests/model"), str(REPO / "tests/ray_jobs")])
    environment = os.environ | {"PYTHONPATH": path, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    script = Path(__file__).parents[1] / "validation_rank.py"
    logs = [tmp_path / f"rank{rank}.log" for rank in range(N_RANKS)]
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(tmp_path), str(backbone)],
            env=environment,
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
        )
        for rank, log in enumerate(logs)
    ]
    mllm = build_toy_mllm(backbone)
    alone = hear(mllm, build_set(mllm), 0, 1, is_parted=False)
    assert mllm.training
    try:
        codes = [rank.wait(timeout=300) for rank in ranks]  # a hang is cut off there
    finally:
        for rank in ranks:
            rank.kill()
    assert not any(codes), "\n".join(log.read_text()[-4000:] for log in logs)
    found = [json.loads((tmp_path / f"rank{rank}.json").read_text(encoding="utf-8")) for rank in range(N_RANKS)]
    for outcome in found:
        for stage in ("stage2", "stage3"):
            assert outcome[stage]["answers"] == alone["answers"]
            assert outcome[stage]["metrics"] == alone["metrics"]
    assert 0 < alone["metrics"]["val/tool_accuracy"] < 1
    assert 0 < alone["metrics"][SCORE_KEY] < 1
    assert len(alone["answers"][0]) == N_QUESTIONS
    apart, together = ([outcome[stage]["n_passes"] for outcome in found] for stage in ("stage2", "stage3"))
    assert apart[0] != apart[1], "else nothing is padded"
    assert together[0] == together[1] < 0.75 * alone["n_passes"]
