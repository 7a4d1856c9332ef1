"""DeepSpeed's config, and a training state that goes from any ZeRO stage and world size to any other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from ray_jobs.config import TrainOptions
from ray_jobs.zero import deepspeed_config

REPO = Path(__file__).resolve().parents[2]
STAGES = (0, 1, 2, 3)
BREAK_AFTER = 3


@pytest.mark.parametrize("stage", STAGES)
def test_config_follows_from_the_run_config(stage: int) -> None:
    train = TrainOptions.model_validate({"zero_stage": stage, "lr": 1e-3, "betas": (0.8, 0.9), "max_grad_norm": 0.7})
    config = deepspeed_config(train, "float32")
    assert config["zero_optimization"] == {"stage": stage, "overlap_comm": False}
    assert config["optimizer"]["type"] == "AdamW"
    assert config["optimizer"]["params"] == {
        "lr": 1e-3,
        "betas": [0.8, 0.9],
        "eps": 1e-8,
        "weight_decay": 0.001,
        "torch_adam": True,
    }
    assert config["gradient_clipping"] == 0.7
    assert "bf16" not in config
    assert "scheduler" not in config, "the learning rate is a function of the step"


def test_the_loop_owns_the_accumulation_boundary() -> None:
    config = deepspeed_config(TrainOptions(), "float32")
    assert config["managed_gradient_accumulation"] is False
    assert config["gradient_accumulation_steps"] == config["train_micro_batch_size_per_gpu"] == 1


def test_bf16_and_overlap_where_they_help() -> None:
    assert deepspeed_config(TrainOptions(), "bfloat16")["bf16"] == {"enabled": True}
    for stage, expected in ((0, False), (1, False), (2, True), (3, True)):
        train = TrainOptions.model_validate({"zero_stage": stage, "use_gpu": True})
        assert deepspeed_config(train, "bfloat16")["zero_optimization"]["overlap_comm"] is expected


def run_ranks(world_size: int, folder: Path) -> None:
    script = Path(__file__).with_name("zero_rank.py")
    environment = os.environ | {"PYTHONPATH": str(REPO), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(world_size), str(folder)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world_size)
    ]
    try:
        outputs = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), "\n".join(output[-4000:] for output in outputs)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Tensor]]:
    """What each training of `zero_rank.py` came to, by file name."""
    folder = tmp_path_factory.mktemp("zero")
    run_ranks(2, folder)
    run_ranks(1, folder)
    return {path.stem: load_file(path) for path in folder.glob("*.safetensors")}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if name != "losses":
            assert found[name].shape == value.shape
            assert (found[name] - value).abs().max() <= 1e-6 * max(1.0, float(value.abs().max())), name
    last = found["losses"][-BREAK_AFTER:]
    assert last.tolist() == pytest.approx(expected["losses"][-BREAK_AFTER:].tolist(), rel=1e-6)


@pytest.mark.slow
def test_every_stage_trains_alike(outcomes: dict[str, dict[str, Tensor]]) -> None:
    expected = outcomes["whole-stage0"]
    assert {"scale", "hidden.weight", "exp_avg/scale", "exp_avg_sq/head.bias"} < expected.keys()
    assert not any("frozen" in name for name in expected)
    losses = expected["losses"].tolist()
    assert len(losses) == 2 * BREAK_AFTER
    assert len(set(losses)) == len(losses)
    for stage in STAGES[1:]:
        assert_same(outcomes[f"whole-stage{stage}"], expected)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_break_changes_nothing(outcomes: dict[str, dict[str, Tensor]], stage: int) -> None:
    assert_same(outcomes[f"broken-stage{stage}"], outcomes[f"whole-stage{stage}"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ranks2-stage3", *(f"ranks1-stage{stage}" for stage in STAGES)])
def test_a_state_of_two_ranks_under_stage_2_goes_on_anywhere(outcomes: dict[str, dict[str, Tensor]], name: str) -> None:
    assert_same(outcomes[f"from2-{name}"], outcomes["whole-stage2"])
