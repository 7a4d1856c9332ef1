"""What makes two trainings one job."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_pipeline.batches.steps import PlanIndex
from model.llm.config import ModelConfig
from ray_jobs.config import load_run_spec
from ray_jobs.train.job import _lost, compute_fingerprint


def fingerprint(*overrides: str, data: str = "d", encoder: str = "a-1", sizes: tuple[int, ...] = (9, 12)) -> str:
    spec = load_run_spec(None, ["name=x", *overrides])
    rows = np.ones(len(sizes), dtype=np.int64)
    index = PlanIndex.apart(rows, np.array(sizes), np.array(sizes))
    return compute_fingerprint(spec, ModelConfig(backbone="b"), data, encoder, index)


def test_another_cluster_is_the_same_job() -> None:
    assert fingerprint() == fingerprint("train.workers=8", "train.zero_stage=3", "train.node_resource=train_gpu")


def test_other_data_vectors_tokens_or_settings_are_another_job() -> None:
    others = [
        fingerprint(data="e"),
        fingerprint(encoder="b-1"),  # embedded again with another encoder of the same width
        fingerprint(sizes=(9, 13)),  # another tokenizer
        fingerprint(sizes=(9,)),  # a medium less
        fingerprint("train.lr=1e-5"),
        fingerprint("seed=1"),
    ]
    assert len({fingerprint(), *others}) == 1 + len(others)


def test_a_training_that_lost_a_node_says_that_it_may_lose_more() -> None:
    lost = str(_lost("worker 1 died", None, load_run_spec(None, ["name=x", "train.max_failures=2"])))
    assert "; raise it, or, where memory was short, lower train.pack_tokens=2048, " in lost


def test_a_training_without_memory_says_what_is_left_and_what_to_do() -> None:
    full = "node 10.0.0.7 ran out of memory"
    packed = str(_lost(full, Path("/runs/x/step-3"), load_run_spec(None, ["name=x", "train.max_failures=2"])))
    assert packed.startswith(f"{full}, and train.max_failures=2 is used up; /runs/x/step-3 is intact and the same ")
    assert "lower train.pack_tokens=2048, " in packed
    rows = str(_lost(full, None, load_run_spec(None, ["name=x", "train.layout=rows"])))
    assert "; no checkpoint is there yet; lower train.micro_batch_size=4, " in rows
