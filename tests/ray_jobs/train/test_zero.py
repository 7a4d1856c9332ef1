"""DeepSpeed's config, and a training state that goes from any ZeRO stage and world size to any other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from data_pipeline.errors import InputError
from model.llm.config import ModelConfig
from model.llm.tool_llm import ToolLLM
from ray_jobs.train import zero
from ray_jobs.train.zero import MOMENTS, deepspeed_config, parameter_groups, start_engine
from ray_jobs.train_options import TrainOptions, check_training

sys.path.insert(0, str(Path(__file__).parents[2] / "model"))  # the ranks import these modules by name as well
sys.path.insert(0, str(Path(__file__).parents[1]))
from toy_batches import build_toy_backbone, build_toy_mllm, gradients, run_step, toy_media
from zero_mllm import (
    DORA,
    FP16_BREAKS,
    LORA_PLUS_RATIO,
    N_QUESTIONS,
    build_plain_module,
    compute_logits,
    compute_plain_loss,
    draw_micro_steps,
    step_questions,
    step_weight,
)

REPO = Path(__file__).resolve().parents[3]
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
    assert not config.keys() & {"bf16", "fp16", "data_types"}
    assert "scheduler" not in config, "the learning rate is a function of the step"


@pytest.mark.parametrize(("dtype", "key"), [("bfloat16", "bf16"), ("float16", "fp16")])
def test_16_bits_are_summed_in_32_and_float16_is_scaled(dtype: str, key: str) -> None:
    config = deepspeed_config(TrainOptions(), dtype)
    assert config.keys() & {"bf16", "fp16"} == {key}
    assert config[key]["enabled"]
    assert config["data_types"] == {"grad_accum_dtype": "fp32"}
    if key == "fp16":
        assert config[key] == {"enabled": True, "loss_scale": 0, "initial_scale_power": 16, "min_loss_scale": 1}


@pytest.mark.parametrize("stage", STAGES[1:])
def test_the_optimizer_may_live_in_cpu_memory(stage: int) -> None:
    train = TrainOptions.model_validate({"zero_stage": stage, "offload_optimizer": True})
    zero = deepspeed_config(train, "float32")["zero_optimization"]
    assert zero["offload_optimizer"] == {"device": "cpu", "pin_memory": False}


@pytest.mark.parametrize(
    ("model", "train", "message"),
    [
        ({}, {"zero_stage": 0, "offload_optimizer": True}, r"train\.offload_optimizer=true needs .* 1, 2 or 3"),
        ({"dtype": "bfloat16"}, {"zero_stage": 0}, r"bfloat16 does not train exactly under train\.zero_stage=0; set"),
        ({"dtype": "float16"}, {"zero_stage": 0}, r"float16 does not train exactly under train\.zero_stage=0; set"),
        ({"dtype": "float16"}, {}, r"float16 trains on GPUs alone; set train\.use_gpu=true, or"),
        ({"quantize": "nf4"}, {"zero_stage": 3, "use_gpu": True}, r"nf4 does not go with train\.zero_stage=3"),
        ({"quantize": "nf4"}, {}, r"nf4 needs CUDA; set train\.use_gpu=true"),
        ({}, {"epochs": 1, "projector_epochs": 2}, r"projector_epochs=2 is more than train\.epochs=1, .* lower the"),
        ({}, {"sampler": "paper"}, r"train\.layout is packed and .* set train\.layout=rows"),
        ({}, {"sampler": "paper", "layout": "rows", "mixture": {"a": 2}}, r"leave train\.mixture empty"),
    ],
)
def test_what_cannot_train_together_is_refused(model: dict[str, Any], train: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_training(ModelConfig(**model), TrainOptions.model_validate(train))
    check_training(ModelConfig(), TrainOptions(epochs=2, projector_epochs=2))
    check_training(ModelConfig(dtype="bfloat16", quantize="nf4"), TrainOptions(use_gpu=True, offload_optimizer=True))


@pytest.mark.parametrize(("most", "expected"), [(10**9, 17), (5, 5)])
def test_a_bucket_is_no_larger_than_what_is_trained(monkeypatch: pytest.MonkeyPatch, most: int, expected: int) -> None:
    """DeepSpeed keeps the buffer all the time, and would make it of 500 M numbers."""
    given: dict[str, Any] = {}

    def initialize(config: dict[str, Any], **_: Any) -> tuple[Any]:
        given.update(config)
        return (object(),)

    mllm: Any = nn.Sequential(nn.Linear(4, 3), nn.Linear(1, 2, bias=False), nn.Linear(50, 50).requires_grad_(False))
    mllm.config = ModelConfig()
    monkeypatch.setattr(zero.deepspeed, "initialize", initialize)
    monkeypatch.setattr(zero, "MAX_BUCKET", most)
    start_engine(mllm, TrainOptions())
    assert given["zero_optimization"]["reduce_bucket_size"] == expected, "4 x 3 + 3 + 2 numbers are trained"


def test_the_loop_owns_the_accumulation_boundary() -> None:
    config = deepspeed_config(TrainOptions(), "float32")
    assert config["managed_gradient_accumulation"] is False
    assert config["gradient_accumulation_steps"] == config["train_micro_batch_size_per_gpu"] == 1


def test_bf16_and_overlap_where_they_help() -> None:
    assert deepspeed_config(TrainOptions(), "bfloat16")["bf16"] == {"enabled": True}
    for stage, expected in ((0, False), (1, False), (2, True), (3, True)):
        train = TrainOptions.model_validate({"zero_stage": stage, "use_gpu": True})
        assert deepspeed_config(train, "bfloat16")["zero_optimization"]["overlap_comm"] is expected


def run_ranks(world_size: int, folder: Path, backbone: Path) -> None:
    script = Path(__file__).parents[1] / "zero_rank.py"
    path = os.pathsep.join([str(REPO), str(REPO / "tests/model")])
    environment = os.environ | {"PYTHONPATH": path, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    logs = [folder / f"rank{rank}-of-{world_size}.log" for rank in range(world_size)]  # a pipe might fill up
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(world_size), str(folder), str(backbone)],
            env=environment,
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
        )
        for rank, log in enumerate(logs)
    ]
    try:
        codes = [process.wait(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert not any(codes), "\n".join(log.read_text()[-4000:] for log in logs)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_toy_backbone(tmp_path_factory.mktemp("backbone") / "tiny")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory, backbone: Path) -> dict[str, dict[str, Tensor]]:
    """What each training of `zero_rank.py` came to, by file name."""
    folder = tmp_path_factory.mktemp("zero")
    run_ranks(2, folder, backbone)  # a hang would be cut off there
    run_ranks(1, folder, backbone)
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


@pytest.fixture(scope="module")
def mllm(backbone: Path) -> ToolLLM:
    return build_toy_mllm(backbone)


def test_one_group_unless_rates_differ(mllm: ToolLLM) -> None:
    def shape(train: dict[str, Any]) -> list[tuple[int, float, bool]]:
        groups = parameter_groups(mllm, TrainOptions.model_validate(train))
        ids = [id(parameter) for group in groups for parameter in group["params"]]
        assert sorted(ids) == sorted(id(p) for p in mllm.parameters() if p.requires_grad)
        return [(len(group["params"]), group["lr_factor"], group["is_projector"]) for group in groups]

    assert shape({}) == [(20, 1.0, False)]  # A and B of four projections in two layers; embedding, head; projector
    assert shape({"lora_plus_ratio": 16}) == [(12, 1.0, False), (8, 16.0, False)]
    assert shape({"lora_plus_ratio": 16, "projector_epochs": 1}) == [(10, 1.0, False), (8, 16.0, False), (2, 1.0, True)]


def pick(outcome: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """A state's parameters, or one of the moments, by parameter name."""
    if prefix:
        return {name.removeprefix(prefix): value for name, value in outcome.items() if name.startswith(prefix)}
    return {name: value for name, value in outcome.items() if "/" not in name and name != "logits"}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], rtol: float) -> None:
    """Relative to each tensor's largest value."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= rtol * value.abs().max(), name


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_rank_without_media_neither_hangs_nor_changes_the_gradient(
    outcomes: dict[str, dict[str, Tensor]], mllm: ToolLLM, stage: int
) -> None:
    """Adam's first moment after one unclipped step is a tenth of the gradient."""
    for rank in range(2):
        questions = step_questions(mllm, 0, rank)
        assert any((question.prompt_ids < 0).any() for question in questions) == (rank == 0)
        run_step(mllm, questions, toy_media(N_QUESTIONS, 0), "packed")
    expected = {name: 0.1 * value / step_weight(mllm, 0) for name, value in gradients(mllm).items()}
    assert expected["projector.weight"].abs().max() > 0
    assert_close(pick(outcomes[f"mixed-stage{stage}"], "exp_avg/"), expected, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "model"), [("two-steps-stage3", {}), ("dora-stage3", DORA)])
def test_a_state_gathered_under_zero_3_gives_a_fresh_model_the_same_logits(
    outcomes: dict[str, dict[str, Tensor]], backbone: Path, name: str, model: dict[str, Any]
) -> None:
    fresh = build_toy_mllm(backbone, **model)
    before = compute_logits(fresh)
    fresh.load_trainable_state_dict(pick(outcomes[name]))
    assert torch.equal(compute_logits(fresh), outcomes[name]["logits"])
    assert not torch.allclose(before, outcomes[name]["logits"])


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_state_holds_what_is_trained_and_nothing_frozen(
    outcomes: dict[str, dict[str, Tensor]], mllm: ToolLLM, stage: int
) -> None:
    trained = {name: parameter for name, parameter in mllm.named_parameters() if parameter.requires_grad}
    state = {name: value for name, value in outcomes[f"two-steps-stage{stage}"].items() if name != "logits"}
    assert state.keys() == {prefix + name for name in trained for prefix in ("", *(f"{m}/" for m in MOMENTS))}
    assert not any("base_layer" in name or "original_module" in name for name in state)
    n_bytes = sum(value.numel() * value.element_size() for value in state.values())
    assert n_bytes == 3 * 4 * sum(parameter.numel() for parameter in trained.values())


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES[1:])
def test_offload_and_restore_change_nothing(outcomes: dict[str, dict[str, Tensor]], stage: int) -> None:
    expected = {name: value for name, value in outcomes["two-steps-stage0"].items() if name != "logits"}
    assert_close(outcomes[f"offload-stage{stage}"], expected, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES[1:])
@pytest.mark.parametrize("kind", ["bf16", "fp16"])
def test_a_step_in_16_bits_is_near_the_exact_one(outcomes: dict[str, dict[str, Tensor]], kind: str, stage: int) -> None:
    exact, rounded = (pick(outcomes[f"{each}-stage{stage}"], "exp_avg/") for each in ("mixed", kind))
    assert all(value.dtype == torch.float32 for value in outcomes[f"{kind}-stage{stage}"].values())
    flat = [torch.cat([state[name].flatten() for name in exact]) for state in (exact, rounded)]
    assert 0 < (flat[0] - flat[1]).norm() < 0.1 * flat[0].norm()


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES[1:])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_gradients_in_16_bits_are_summed_in_float32(
    outcomes: dict[str, dict[str, Tensor]], dtype: str, stage: int
) -> None:
    """Sums in bfloat16 are off by 0.8 % after 64 micro steps. Adam's first moment is a tenth of the gradient."""
    module = build_plain_module().to(getattr(torch, dtype))
    expected = {name: torch.zeros_like(value, dtype=torch.float32) for name, value in module.named_parameters()}
    for x in draw_micro_steps(getattr(torch, dtype)):
        module.zero_grad()
        compute_plain_loss(module, x).backward()
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None
            expected[name] += 0.1 * parameter.grad.float()
    found = pick(outcomes[f"summed-{dtype}-stage{stage}"], "exp_avg/")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] - value).norm() <= 3e-3 * value.norm(), name  # ZeRO-1 rounds the sum once, on its way


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES[1:])
def test_a_break_among_steps_that_overflow_changes_nothing(outcomes: dict[str, dict[str, Tensor]], stage: int) -> None:
    """The first overflow is let pass, the second halves the scale, and Adam counts the updates that were made."""
    whole, broken = (outcomes[f"fp16-{name}-stage{stage}"] for name in ("whole", "broken"))
    assert whole.keys() == broken.keys()
    assert all(torch.equal(broken[name], value) for name, value in whole.items())
    assert whole["skipped"][: FP16_BREAKS[0] + 1].all()
    assert not whole["skipped"][: FP16_BREAKS[1]].all()
    assert all(value.isfinite().all() for value in whole.values())


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_at_first_only_the_projector_moves(outcomes: dict[str, dict[str, Tensor]], mllm: ToolLLM, stage: int) -> None:
    closed, start = outcomes[f"closed-stage{stage}"], mllm.trainable_state_dict()
    for name, value in start.items():
        is_projector = name.startswith("projector.")
        assert torch.equal(closed[name], value) != is_projector, name
        assert bool(closed[f"exp_avg/{name}"].any()) == bool(closed[f"exp_avg_sq/{name}"].any()) == is_projector, name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stage2", "stage3", *(f"from3-stage{stage}" for stage in STAGES)])
def test_lora_plus_and_the_second_stage_agree_under_every_stage(
    outcomes: dict[str, dict[str, Tensor]], name: str
) -> None:
    expected, start = pick(outcomes["opened-stage0"]), pick(outcomes["closed-stage0"])
    moved = {key: float((value - start[key]).abs().max()) for key, value in expected.items()}
    fastest = {part: max(moved[key] for key in moved if part in key) for part in ("lora_A", "lora_B")}
    assert fastest["lora_B"] == pytest.approx(LORA_PLUS_RATIO * fastest["lora_A"], rel=0.1)
    assert_close(pick(outcomes[f"opened-{name}"]), expected, 1e-4)


@pytest.mark.slow
def test_dora_trains_on_sharded_weights(outcomes: dict[str, dict[str, Tensor]]) -> None:
    """Its forward pass reads the norms of weights that belong to another module."""
    found, expected = outcomes["dora-stage3"], outcomes["dora-stage2"]
    assert any("lora_magnitude_vector" in name for name in expected)
    for prefix in ("", "exp_avg/", "exp_avg_sq/"):
        assert_close(pick(found, prefix), pick(expected, prefix), 1e-4)
