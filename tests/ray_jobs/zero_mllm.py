"""What `zero_rank.py` does on two ranks with a whole `ToolLLM`: adapters, groups, offload, bf16, unlike batches.

Rank 0 has media in its batches, rank 1 has none. Under ZeRO-3 every weight is sharded and given up as soon as it has
been used, as the weights of a large model are.
"""

from __future__ import annotations

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
    backbone: Path, stage: int, model: dict[str, Any], state: State | None = None, steps_taken: int = 0, **train: Any
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
    groups: Any = zero.parameter_groups(mllm, options)
    engine: Any = deepspeed.initialize(model=mllm, model_parameters=groups, config=config)[0]
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


def sum_micro_steps(stage: int) -> State:
    """Many micro steps of a small module in bfloat16, the same on both ranks, and one update."""
    import deepspeed

    from ray_jobs.train.zero import deepspeed_config, gather_training_state

    options = TrainOptions.model_validate({"zero_stage": stage, "max_grad_norm": 1e9})
    module = build_plain_module()
    parameters: Any = list(module.parameters())
    config = deepspeed_config(options, "bfloat16")
    engine: Any = deepspeed.initialize(model=module, model_parameters=parameters, config=config)[0]
    for x in draw_micro_steps():
        engine.backward(compute_plain_loss(engine, x))
    engine.step()
    return gather_training_state(engine)


def build_plain_module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))


def draw_micro_steps() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 64, generator=generator).bfloat16() for _ in range(64)]


def compute_plain_loss(module: Any, x: Tensor) -> Tensor:
    return (module(x).float() ** 2).sum()


def compute_logits(mllm: ToolLLM) -> Tensor:
    with torch.no_grad():
        return mllm.eval().llm(INPUT_IDS).logits


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
        save(f"summed-stage{stage}", sum_micro_steps(stage))
        save(f"bf16-stage{stage}", take_steps(build_engine(backbone, stage, {"dtype": "bfloat16"}), 0, 1, rank))

    two_stages = {"projector_epochs": 1, "lora_plus_ratio": LORA_PLUS_RATIO}
    for stage in (0, 2, 3):
        engine = build_engine(backbone, stage, {}, **two_stages)
        closed = save(f"closed-stage{stage}", take_steps(engine, 0, CLOSED_STEPS, rank, CLOSED_STEPS))
        save(f"opened-stage{stage}", take_steps(engine, CLOSED_STEPS, ALL_STEPS, rank, CLOSED_STEPS))
    for stage in (0, 1, 2, 3):
        engine = build_engine(backbone, stage, {}, closed, CLOSED_STEPS, **two_stages)
        save(f"opened-from3-stage{stage}", take_steps(engine, CLOSED_STEPS, ALL_STEPS, rank, CLOSED_STEPS))

    for stage in (2, 3):
        engine = build_engine(backbone, stage, DORA)
        save(f"dora-stage{stage}", take_steps(engine, 0, 2, rank), logits=compute_logits(engine.module))
