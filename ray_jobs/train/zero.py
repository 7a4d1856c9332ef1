"""The DeepSpeed config, derived from the run config, and optimizer state that any ZeRO stage and world size can read.

DeepSpeed's own checkpoints are cut by world size and stage. Here every trainable parameter's fp32 value and its two
Adam moments are gathered whole, so a checkpoint restores on another number of workers and under another stage (DESIGN
idea 5).
"""

from __future__ import annotations

from typing import Any

import deepspeed
import torch
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn

from model.llm.tool_llm import ToolLLM
from ray_jobs.train_options import MAX_BUCKET, TrainOptions

MOMENTS = ("exp_avg", "exp_avg_sq")
MAX_STEPS_PER_PRINT = 2**31
INITIAL_SCALE_POWER, MIN_LOSS_SCALE = 16, 1  # of what float16 losses are multiplied by
LOSS_SCALER_STATE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")  # of DeepSpeed's dynamic one


def deepspeed_config(train: TrainOptions, dtype: str) -> dict[str, Any]:
    """Derive DeepSpeed's JSON. Batch sizes and the learning rate have their home in the run config.

    A step's micro steps vary with the packing, so the loop owns the accumulation boundary
    (`managed_gradient_accumulation` off) and DeepSpeed's own batch arithmetic is a formality.
    """
    zero: dict[str, Any] = {
        "stage": train.zero_stage,
        "overlap_comm": train.use_gpu and train.zero_stage >= 2,
    }
    if train.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": train.use_gpu}
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": train.max_grad_norm,
        "steps_per_print": MAX_STEPS_PER_PRINT,
        "zero_optimization": zero,
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": train.lr,
                "betas": list(train.betas),
                "eps": 1e-8,
                "weight_decay": train.weight_decay,
                "torch_adam": True,  # needs no compiler at run time; the trainable part is small
            },
        },
    }
    if dtype == "bfloat16":
        config["bf16"] = {"enabled": True}
    if dtype == "float16":
        config["fp16"] = {
            "enabled": True,
            "loss_scale": 0,  # dynamic
            "initial_scale_power": INITIAL_SCALE_POWER,
            "min_loss_scale": MIN_LOSS_SCALE,
        }
    if dtype != "float32":
        config["data_types"] = {"grad_accum_dtype": "fp32"}  # sums over 64 micro steps in bfloat16 are off by 0.8 %
    return config


def disable_compiled_collectives() -> None:
    """Keep DeepSpeed from compiling its shared-memory collectives for CPU ranks at first use.

    That takes a C++ compiler and a minute; gloo's collectives do.
    """
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def named_trainables(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]


def parameter_groups(mllm: ToolLLM, train: TrainOptions) -> list[dict[str, Any]]:
    """The optimizer's groups, for `deepspeed.initialize` and `set_learning_rates`.

    LoRA+ (Hayou et al. 2024, arXiv 2402.12354) lets the adapter's B matrices learn `lora_plus_ratio` times as fast as
    all else. The two-stage schedule needs the projector apart. Where neither is asked for there is one group.

    Returns:
        groups with "params", "lr_factor" (of the step's learning rate) and "is_projector".
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in named_trainables(mllm):
        lr_factor = train.lora_plus_ratio if ".lora_B." in name else 1.0
        is_projector = bool(train.projector_epochs) and name.startswith("projector.")
        groups.setdefault((lr_factor, is_projector), []).append(parameter)
    return [
        {"params": parameters, "lr_factor": lr_factor, "is_projector": is_projector}
        for (lr_factor, is_projector), parameters in groups.items()
    ]


def start_engine(mllm: ToolLLM, train: TrainOptions) -> Any:
    """DeepSpeed's engine over the model, with its optimizer; a collective call, in an initialised process group."""
    groups: Any = parameter_groups(mllm, train)
    config = deepspeed_config(train, mllm.config.dtype)
    n_trained = sum(parameter.numel() for group in groups for parameter in group["params"])
    config["zero_optimization"]["reduce_bucket_size"] = min(n_trained, MAX_BUCKET)  # the buffer is there all the time
    engine: Any = deepspeed.initialize(model=mllm, model_parameters=groups, config=config)[0]
    if mllm.config.dtype == "float16":
        prepare_to_skip(engine)
    return engine


def prepare_to_skip(engine: Any) -> None:
    """Let float16 training go through steps that change nothing because their scaled gradients overflowed."""
    _create_optimizer_state(engine, 0)  # else there would be nothing to save where the very first steps are skipped
    engine.optimizer.loss_scaler.raise_error_at_min_scale = False  # the loop says it, in a sentence


def find_loss_scale(engine: Any) -> float | None:
    """What the loss of the next step is multiplied by in float16; None in other dtypes."""
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    return float(scaler.cur_scale) if scaler is not None and scaler.dynamic else None


def has_skipped(engine: Any) -> bool:
    """Whether the last step changed nothing, for gradients that overflowed when scaled; float16 alone."""
    return find_loss_scale(engine) is not None and bool(engine.optimizer.overflow)


def save_loss_scaler(engine: Any) -> dict[str, float]:
    """The state of float16's loss scaler; empty in other dtypes."""
    if find_loss_scale(engine) is None:
        return {}
    return {name: getattr(engine.optimizer.loss_scaler, name) for name in LOSS_SCALER_STATE}


def restore_loss_scaler(engine: Any, state: dict[str, float]) -> None:
    """Put back what `save_loss_scaler` returned."""
    for name, value in state.items():
        setattr(engine.optimizer.loss_scaler, name, value)


def set_learning_rates(engine: Any, lr: float, adapter_open: bool = True) -> None:
    """Set the rates of the step that is about to be computed; call it before the step's first backward pass.

    Args:
        engine: of `start_engine`.
        lr: of the schedule at this step.
        adapter_open: False in the first stage of the two-stage schedule: only the projector moves, and neither weight
            decay nor the optimizer's moments touch anything else.
    """
    engine.module.hold_adapter(not adapter_open)
    for group in engine.optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"] if adapter_open or group["is_projector"] else 0.0


def gather_training_state(engine: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Every trainable parameter in fp32 and its Adam moments, whole, on the CPU. All ranks must call it.

    Returns:
        parameters by name; moments by "<moment>/<name>".
    """
    _link_states(engine)
    parameters, moments = {}, {}
    for name, parameter in named_trainables(engine.module):
        sharded = _is_zero_managed(parameter)
        value = safe_get_full_fp32_param(parameter) if sharded else parameter.detach()
        parameters[name] = _to_cpu(value, parameter)
        for moment in MOMENTS:
            value = (
                safe_get_full_optimizer_state(parameter, moment)
                if sharded
                else engine.optimizer.state[parameter][moment]
            )
            moments[f"{moment}/{name}"] = _to_cpu(value, parameter)
    return parameters, moments


def restore_training_state(
    engine: Any, parameters: dict[str, Tensor], moments: dict[str, Tensor], steps_taken: int
) -> None:
    """Put a gathered state back, at whatever world size and stage the engine now has. All ranks must call it.

    The module's own (possibly bf16) weights must have been loaded before `deepspeed.initialize`; this sets the fp32
    masters and the optimizer.
    """
    _create_optimizer_state(engine, steps_taken)
    for name, parameter in named_trainables(engine.module):
        state = {"": parameters[name]} | {moment: moments[f"{moment}/{name}"] for moment in MOMENTS}
        for key, value in state.items():
            _set_state(engine, parameter, key, value)


def _create_optimizer_state(engine: Any, steps_taken: int) -> None:
    """Torch's AdamW makes its state at the first step only; make it now, to have something to fill."""
    zero_stage = engine.zero_optimization_stage()
    inner = getattr(engine.optimizer, "optimizer", engine.optimizer)
    if zero_stage == 3:
        owned = engine.optimizer.fp32_partitioned_groups_flat  # param_groups are empty between steps under ZeRO-3
    else:
        owned = [parameter for group in inner.param_groups for parameter in group["params"]]
    for parameter in owned:
        inner.state[parameter] = {"step": torch.tensor(float(steps_taken))} | {
            moment: torch.zeros_like(parameter) for moment in MOMENTS
        }
    _link_states(engine)


def _link_states(engine: Any) -> None:
    """Let ZeRO 1 and 2 find their partitions of the optimizer's state.

    They look them up through links that they make once, when the first group has taken its first step: the other
    groups, which have no state at that time, are left out. So make the links anew.
    """
    if hasattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state"):
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def _set_state(engine: Any, parameter: nn.Parameter, key: str, value: Tensor) -> None:
    value = value.to(device=engine.device, dtype=torch.float32)
    if engine.zero_optimization_stage() == 3:
        # The whole-value setter of ZeRO-3 fails where the size is not a multiple of the world size: set our part.
        partition_size = parameter.ds_tensor.numel()  # pyright: ignore[reportAttributeAccessIssue]
        padded = nn.functional.pad(value.flatten(), (0, partition_size * engine.dp_world_size - value.numel()))
        part = padded.narrow(0, engine.global_rank * partition_size, partition_size)
        if key:
            safe_set_local_optimizer_state(parameter, part, key)
        else:
            safe_set_local_fp32_param(parameter, part)
    elif _is_zero_managed(parameter):
        if key:
            safe_set_full_optimizer_state(parameter, value, key)
        else:
            safe_set_full_fp32_param(parameter, value)
    elif key:
        engine.optimizer.state[parameter][key].copy_(value)
    else:
        parameter.data.copy_(value)


def _is_zero_managed(parameter: nn.Parameter) -> bool:
    return hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping")


def _to_cpu(value: Tensor | None, parameter: nn.Parameter) -> Tensor:
    assert value is not None, "a trainable parameter without optimizer state: save after the first step"
    shape = getattr(parameter, "ds_shape", parameter.shape)
    return value.detach().to("cpu", torch.float32).reshape(shape).clone()
