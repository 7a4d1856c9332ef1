"""What `zero_rank.py` does on two ranks with a whole `ToolLLM`: adapters, groups, offload, bf16, fp16, unlike batches.

Rank 0 has media in its batches, rank 1 has none. Under ZeRO-3 every weight is sharded and given up as soon as it has
been used, as the weights of a large model are.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from toy_batches import build_toy_mllm, toy_media, toy_questions

from data_pipeline.batches.encoding import EncodedQuestion
from data_pipeline.batches.packing import build_micro_batch
from model.llm.tool_llm import ToolLLM, to_tensors
from ray_jobs.train_options import TrainOptions

N_RANKS, N_QUESTIONS = 2, 4
LR, LORA_PLUS_RATIO = 1e-2, 4.0
CLOSED_STEPS, ALL_STEPS = 2, 4  # of the two-stage schedule
FP16_STEPS, FP16_SCALE_POWER = 6, 14  # scaled so, the gradients of the first three steps overflow
FP16_BREAKS = (1, 4)  # before the scale is lowered for the first time, and when an update was made
DORA = {
    "adapter": "dora", "lora_target": "all-linear", "modules_to_save": [], "lora_dropout": 0.2,
    "gradient_checkpointing": True,
}  # fmt: skip
FULLY_SHARDED = dict.fromkeys(
    (
        "stage3_param_persistence_threshold",
        "stage3_max_live_parameters",
        "stage3_max_reuse_distance",
        "stage3_prefetch_bucket_size",
    ),
    0,
)
INPUT_IDS = torch.arange(5, 25)[None]
State = tuple[dict[str, Tensor], dict[str, Tensor]]  # what gather_training_state returns


def step_questions(mllm: ToolLLM, step: int, rank: int) -> list[EncodedQuestion]:
    return toy_questions(mllm, N_QUESTIONS, seed=10 * step + rank, text_only=rank == 1)


def step_weight(mllm: ToolLLM, step: int) -> int:
    """Answer tokens of a step over all ranks."""
    questions = [question for rank in range(N_RANKS) for question in step_questions(mllm, step, rank)]
    return sum(len(answer) for question in questions for answer in question.answers)


def build_engine(
    backbone: Path,
    stage: int,
    model: dict[str, Any],
    state: State | None = None,
    steps_taken: int = 0,
    scale_power: int = 8,
    **train: Any,
) -> Any:
    import deepspeed

    from ray_jobs.train import zero

    mllm = build_toy_mllm(backbone, **model)
    if state is not None:
        mllm.load_trainable_state_dict(state[0])
    options = TrainOptions.model_validate(
        {"zero_stage": stage, "lr": LR, "weight_decay": 0.1, "max_grad_norm": 1e9} | train
    )
    config = zero.deepspeed_config(options, mllm.config.dtype)
    if stage == 3:
        config["zero_optimization"] |= FULLY_SHARDED
    if mllm.config.dtype == "float16":
        config["fp16"]["initial_scale_power"] = scale_power
    groups: Any = zero.parameter_groups(mllm, options)
    engine: Any = deepspeed.initialize(model=mllm, model_parameters=groups, config=config)[0]
    if mllm.config.dtype == "float16":
        zero.prepare_to_skip(engine)
    if state is not None:
        zero.restore_training_state(engine, *state, steps_taken)
    engine.train()
    return engine


def take_steps(engine: Any, first: int, end: int, rank: int, closed_steps: int = 0) -> State:
    from ray_jobs.train.zero import gather_training_state, set_learning_rates

    mllm = engine.module
    for step in range(first, end):
        torch.manual_seed(step)
        set_learning_rates(engine, LR / (step + 1), adapter_open=step >= closed_steps)
        batch = build_micro_batch(step_questions(mllm, step, rank), np.arange(N_QUESTIONS), np.arange(N_QUESTIONS))
        output = engine(to_tensors(batch, toy_media(N_QUESTIONS, step)[batch.media_row], "cpu"))
        engine.backward(output.loss_sum * (N_RANKS / step_weight(mllm, step)))
        engine.step()
    return gather_training_state(engine)


def sum_micro_steps(stage: int, dtype: str) -> State:
    """Many micro steps of a small module in 16 bits, the same on both ranks, and one update."""
    import deepspeed

    from ray_jobs.train.zero import deepspeed_config, gather_training_state

    options = TrainOptions.model_validate({"zero_stage": stage, "max_grad_norm": 1e9})
    module = build_plain_module()
    parameters: Any = list(module.parameters())
    config = deepspeed_config(options, dtype)
    engine: Any = deepspeed.initialize(model=module, model_parameters=parameters, config=config)[0]
    for x in draw_micro_steps(getattr(torch, dtype)):
        engine.backward(compute_plain_loss(engine, x))
    engine.step()
    return gather_training_state(engine)


def build_plain_module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))


def draw_micro_steps(dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 64, generator=generator).to(dtype) for _ in range(64)]


def compute_plain_loss(module: Any, x: Tensor) -> Tensor:
    return (module(x).float() ** 2).sum() / 1000


def compute_logits(mllm: ToolLLM) -> Tensor:
    with torch.no_grad():
        return mllm.eval().llm(INPUT_IDS).logits


def run_in_float16(rank: int, backbone: Path, save: Callable[..., State]) -> None:
    """DeepSpeed refuses float16 where the processor has no instructions for it; torch computes it all the same."""
    from deepspeed.accelerator import get_accelerator

    from ray_jobs.train.zero import gather_training_state, has_skipped, restore_loss_scaler, save_loss_scaler

    accelerator: Any = get_accelerator()
    accelerator.is_fp16_supported = lambda: True
    half = {"dtype": "float16"}
    for stage in (1, 2, 3):
        save(f"summed-float16-stage{stage}", sum_micro_steps(stage, "float16"))
        save(f"fp16-stage{stage}", take_steps(build_engine(backbone, stage, half), 0, 1, rank))
        for name, breaks in (("whole", ()), ("broken", FP16_BREAKS)):
            engine = build_engine(backbone, stage, half, scale_power=FP16_SCALE_POWER)
            skipped = []
            for step in range(FP16_STEPS):
                if step in breaks:
                    state, scaler = gather_training_state(engine), save_loss_scaler(engine)
                    engine = build_engine(backbone, stage, half, state, step - sum(skipped))
                    restore_loss_scaler(engine, scaler)
                take_steps(engine, step, step + 1, rank)
                skipped.append(has_skipped(engine))
            save(f"fp16-{name}-stage{stage}", gather_training_state(engine), skipped=torch.tensor(skipped))
    del accelerator.is_fp16_supported


def run_cases(rank: int, folder: Path, backbone: Path) -> None:
    def save(name: str, state: State, **more: Tensor) -> State:
        if rank == 0:
            save_file(state[0] | state[1] | more, folder / f"{name}.safetensors")
        return state

    for stage in (0, 1, 2, 3):
        engine = build_engine(backbone, stage, {})
        save(f"mixed-stage{stage}", take_steps(engine, 0, 1, rank))
        state = take_steps(engine, 1, 2, rank)
        save(f"two-steps-stage{stage}", state, logits=compute_logits(engine.module))
    for stage in (1, 2, 3):
        engine = build_engine(backbone, stage, {}, offload_optimizer=True)
        state = take_steps(engine, 0, 1, rank)
        engine = build_engine(backbone, stage, {}, state, 1, offload_optimizer=True)
        save(f"offload-stage{stage}", take_steps(engine, 1, 2, rank))
        save(f"summed-bfloat16-stage{stage}", sum_micro_steps(stage, "bfloat16"))
        save(f"bf16-stage{stage}", take_steps(build_engine(backbone, stage, {"dtype": "bfloat16"}), 0, 1, rank))

    two_stages = {"projector_epochs": 1, "lora_plus_ratio": LORA_PLUS_RATIO}
    for stage in (0, 2, 3):
        engine = build_engine(backbone, stage, {}, **two_stages)
        closed = save(f"closed-stage{stage}", take_steps(engine, 0, CLOSED_STEPS, rank, CLOSED_STEPS))
        save(f"opened-stage{stage}", take_steps(engine, CLOSED_STEPS, ALL_STEPS, rank, CLOSED_STEPS))
    for stage in (0, 1, 2, 3):
        engine = build_engine(backbone, stage, {}, closed, CLOSED_STEPS, **two_stages)
        save(f"opened-from3-stage{stage}", take_steps(engine, CLOSED_STEPS, ALL_STEPS, rank, CLOSED_STEPS))

    run_in_float16(rank, backbone, save)

    for stage in (2, 3):
        engine = build_engine(backbone, stage, DORA)
        save(f"dora-stage{stage}", take_steps(engine, 0, 2, rank), logits=compute_logits(engine.module))
