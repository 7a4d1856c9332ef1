"""The scale model, against numbers that are computed by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ray_jobs.config import load_run_spec
from ray_jobs.estimate.dry_run import run_dry
from ray_jobs.estimate.scale import CLUSTERS, SIZES, Cluster, Work, count_traffic, main, predict, run

# one layer of numbers that are easy to divide: 4 workers a node, 1 GFLOP/s, 100 MB/s within and 10 MB/s between nodes
CLUSTER = Cluster("by hand", 4, 1e9, 100e6, 10e6, 2000.0, 50e6, 100e6, start_s=60.0, price_per_hour=36.0)
# 100 packs of 1,000 tokens an epoch, ten rows in each; 1 MFLOP a token; 200 MB frozen, a million 2-byte numbers trained
WORK = Work(2, 100_000.0, 1000.0, 40.0, 1000, 1e6, 200e6, 1_000_000, 2, zero_stage=2, checkpoints=1.0)


@pytest.mark.parametrize(
    ("stage", "sent"),
    [
        (0, 3 * 2 * 2e6),  # three micro steps, reduced to all: twice the gradients
        (1, 3 * 2e6 + 2e6),  # reduced to one, then the new weights to all
        (2, 3 * 2e6 + 2e6),
        (3, 3 * (2e6 + 2 * 202e6)),  # and all weights, forward and backward
    ],
)
def test_what_a_worker_sends_by_stage(stage: int, sent: float) -> None:
    work = replace(WORK, zero_stage=stage)
    assert count_traffic(work, 4, 3) == pytest.approx(sent * 3 / 4)
    assert count_traffic(work, 1, 3) == 0


def test_one_node_by_hand() -> None:
    """40 rows are 4,000 tokens: one pack for each of four workers."""
    found = predict(CLUSTER, WORK, 4)
    assert (found.nodes, found.batch_rows, found.epoch_steps) == (1, 40, 25)
    assert found.compute_s == pytest.approx(1.0)
    assert found.traffic_s == pytest.approx((2e6 + 2e6) * 3 / 4 / 100e6)  # 0.03
    assert found.data_s == pytest.approx(0.5)
    assert found.step_s == pytest.approx(1.03)
    assert found.tokens_per_s == pytest.approx(4000 / 1.03)
    assert found.checkpoint_s == pytest.approx(12e6 / 50e6)  # 0.24
    assert found.start_s == pytest.approx(60 + 200e6 / 50e6)  # 64
    assert found.epoch_s == pytest.approx(25 * 1.03 + 0.24)  # 25.99
    assert found.epoch_cost == pytest.approx(25.99 * 0.01)
    assert found.cost == pytest.approx((64 + 2 * 25.99) * 0.01)
    assert found.bottleneck == "start-up"
    assert found.shares["compute"] == pytest.approx(50 / (64 + 2 * 25.99))
    assert sum(found.shares.values()) == pytest.approx(1)


def test_more_nodes_by_hand() -> None:
    """16 workers: the batch is four times as large, the network between nodes the narrowest, the storage shared."""
    found = predict(CLUSTER, WORK, 16)
    assert (found.nodes, found.batch_rows, found.epoch_steps) == (4, 160, 6.25)
    assert found.traffic_s == pytest.approx(4e6 * 15 / 16 / 10e6)
    assert found.start_s == pytest.approx(60 + 200e6 / 25e6)
    fewer = predict(CLUSTER, WORK, 2)
    assert (fewer.batch_rows, fewer.compute_s) == (40, pytest.approx(2.0)), "two micro steps of each worker"
    assert fewer.traffic_s == pytest.approx((2 * 2e6 + 2e6) / 2 / 100e6)


def test_each_thing_can_be_what_holds_it_up() -> None:
    long = replace(WORK, epoch_tokens=100e6, epoch_rows=1e6)
    assert predict(CLUSTER, long, 4).bottleneck == "compute"
    gathered = predict(CLUSTER, replace(long, zero_stage=3), 16)
    assert gathered.bottleneck == "ZeRO traffic"
    assert gathered.traffic_s == pytest.approx((2e6 + 404e6) * 15 / 16 / 10e6 - 1.0), "what computing does not hide"
    assert predict(replace(CLUSTER, data_tokens_per_s=100.0), long, 4).bottleneck == "data"
    assert predict(CLUSTER, replace(long, checkpoints=1e6), 4).bottleneck == "checkpoints"
    assert predict(CLUSTER, WORK, 16).bottleneck == "start-up"


def test_it_counts_what_the_dry_run_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = load_run_spec("llama2_7b", [f"runs_dir={tmp_path}"])
    report, dry = run(spec, "A100"), run_dry(spec)
    assert "ZeRO-2" in capsys.readouterr().out
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert [row["workers"] for row in report["sizes"]] == list(SIZES) == [8, 16, 32, 64, 128, 256, 512]
    work = report["work"]
    assert work["epoch_tokens"] == pytest.approx(dry["tokens_per_step"] * dry["steps_per_epoch"])
    assert work["flops_per_token"] * dry["tokens_per_step"] == pytest.approx(dry["flops_per_step"])
    one = predict(CLUSTERS["A100"], Work(**work), 1)
    assert work["epochs"] * one.epoch_steps * one.compute_s / 3600 == pytest.approx(dry["hours"] * 4, rel=1e-6)
    larger = run(spec, "H100", rows=10_000_000)
    assert larger["work"]["epoch_rows"] == 10_000_000
    assert larger["work"]["flops_per_token"] == work["flops_per_token"]
    assert larger["sizes"][0]["bottleneck"] == "compute"


def test_a_fault_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", "nothing_like_it"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
