"""Validation that ranks share out, whatever lies where."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.records.schema import Modality, ToolRecord
from ray_jobs.train.validation import SCORE_HIGH_KEY, SCORE_KEY, SCORE_LOW_KEY, ValidationSet

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
    assert 0 < alone["metrics"][SCORE_LOW_KEY] < alone["metrics"][SCORE_KEY] < alone["metrics"][SCORE_HIGH_KEY] < 1
    assert len(alone["answers"][0]) == N_QUESTIONS
    apart, together = ([outcome[stage]["n_passes"] for outcome in found] for stage in ("stage2", "stage3"))
    assert apart[0] != apart[1], "else nothing is padded"
    assert together[0] == together[1] < 0.75 * alone["n_passes"]


def test_a_validation_set_is_named_by_what_is_asked_and_how() -> None:
    records = [ToolRecord(f"q{i}", "toy", Modality.TEXT, f"question {i}", ("a",)) for i in range(3)]
    first = ValidationSet(records, [np.arange(3)] * 3, [None] * 3, ["a", "b"], 4)
    retokenised = replace(first, prompt_ids=[np.arange(9)] * 3, batch_size=2)
    assert first.compute_id() == retokenised.compute_id()
    others = [
        replace(first, records=records[:2]),
        replace(first, records=[*records[:2], replace(records[2], valid_tool_ids=("b",))]),
        replace(first, records=[*records[:2], replace(records[2], instruction="another")]),
        replace(first, tool_ids=["a", "b", "c"]),
        replace(first, cards=(np.arange(2),)),
        replace(first, records=records[:2], dialogues=records[2:]),
    ]
    assert len({first.compute_id(), *(other.compute_id() for other in others)}) == 1 + len(others)
    assert [first.n_questions, others[0].n_questions, others[-1].n_questions] == [3, 2, 3]
