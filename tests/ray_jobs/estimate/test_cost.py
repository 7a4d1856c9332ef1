"""The formulas of memory and operations, against what real models and the optimizer take."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import OPTConfig, OPTForCausalLM

from data_pipeline.batches.encoding import EncodedQuestion
from data_pipeline.batches.packing import build_micro_batch
from data_pipeline.batches.steps import PlanIndex
from model.llm.backbone import attach_adapter
from model.llm.config import ModelConfig
from model.llm.tool_llm import ToolLLM, to_tensors
from model.tiny.backbone import build_tiny_backbone
from ray_jobs.estimate.cost import (
    ModelSize,
    compute_activation_bytes,
    compute_export_bytes,
    compute_flops,
    compute_start_bytes,
    compute_state_bytes,
)
from ray_jobs.estimate.shapes import load_shape


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("cost") / "tiny"
    return str(build_tiny_backbone(folder, ["some words to learn from"] * 3, vocab_size=280))


def pack_of(n_questions: int) -> tuple[dict[str, torch.Tensor], int, int]:
    """A pack of questions with two answers each; its tokens T and loss positions."""
    rng = np.random.default_rng(0)
    questions = [
        EncodedQuestion(rng.integers(5, 200, 24).astype(np.int32), [rng.integers(5, 200, 9).astype(np.int32)] * 2)
        for _ in range(n_questions)
    ]
    assert len(PlanIndex.from_questions(questions)) == n_questions
    batch = build_micro_batch(questions, np.arange(n_questions), np.full(n_questions, -1))
    return to_tensors(batch, None, "cpu"), batch.input_ids.size, len(batch.loss_position)


def build_opt(config: ModelConfig) -> ToolLLM:
    shape = OPTConfig(
        hidden_size=128,
        word_embed_proj_dim=128,
        ffn_dim=512,
        num_hidden_layers=3,
        num_attention_heads=4,
        vocab_size=280,
    )
    llm = OPTForCausalLM._from_config(shape, dtype=getattr(torch, config.dtype))
    return ToolLLM(attach_adapter(llm, config), torch.nn.Linear(64, 128), None, config, "sdpa")


def count_saved_bytes(mllm: ToolLLM, batch: dict[str, torch.Tensor]) -> int:
    """Bytes of all distinct storages that autograd keeps in one forward pass, parameters apart."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in mllm.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            saved[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = mllm.train()(batch)  # alive, so that no storage is used twice
    total = sum(storage.nbytes() for storage in saved.values())
    output.loss_sum.backward()
    return total


@pytest.mark.parametrize(
    "changes",
    [
        {"lora_dropout": 0.0},
        {"lora_dropout": 0.1},
        {"lora_dropout": 0.0, "lora_target": "all-linear", "modules_to_save": ["embed_tokens", "lm_head"]},
        {"lora_dropout": 0.1, "lora_target": "all-linear", "dtype": "bfloat16"},
        {"lora_dropout": 0.0, "adapter": "dora"},
        {"family": "opt", "lora_dropout": 0.05, "lora_r": 16},
    ],
    ids=["plain", "dropout", "all-linear", "bf16", "dora", "opt"],
)
def test_activations_within_a_quarter_of_what_autograd_keeps(backbone: str, changes: dict[str, Any]) -> None:
    fields = {key: value for key, value in changes.items() if key != "family"}
    config = ModelConfig(backbone=backbone, encoder_dim=64, lora_r=fields.pop("lora_r", 8), **fields)
    mllm = build_opt(config) if "family" in changes else ToolLLM.build(config)
    if config.dtype == "bfloat16":
        mllm.to(torch.bfloat16)  # as DeepSpeed does
    batch, n_tokens, n_losses = pack_of(10)
    size = ModelSize.measure(mllm, on_gpu=False)
    mask_bytes = n_tokens**2 * size.number_bytes
    estimate = compute_activation_bytes(size, n_tokens, n_losses, False, mask_bytes)
    measured = count_saved_bytes(mllm, batch)
    assert estimate == pytest.approx(measured, rel=0.25)
    checkpointed = compute_activation_bytes(size, n_tokens, n_losses, True, mask_bytes)
    assert checkpointed < 0.6 * estimate


@pytest.mark.parametrize("is_head_trained", [False, True])
def test_operations_within_a_tenth_of_those_counted(backbone: str, is_head_trained: bool) -> None:
    saved = ["lm_head"] if is_head_trained else []
    config = ModelConfig(backbone=backbone, encoder_dim=64, lora_dropout=0.0, modules_to_save=saved)
    mllm = ToolLLM.build(config)
    batch, n_tokens, n_losses = pack_of(10)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        mllm.train()(batch).loss_sum.backward()
    size = ModelSize.measure(mllm, on_gpu=False)
    estimate = compute_flops(size, n_tokens, n_losses, n_tokens**2, gradient_checkpointing=False)
    assert estimate == pytest.approx(counter.get_total_flops(), rel=0.1)


def test_states_are_those_of_a_real_optimizer(backbone: str) -> None:
    """Without ZeRO, in fp32: measured on tensors that exist; the shape alone gives the same size."""
    config = ModelConfig(backbone=backbone, encoder_dim=64, lora_target="all-linear", modules_to_save=["lm_head"])
    mllm = ToolLLM.build(config)
    trained = [parameter for parameter in mllm.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    mllm.train()(pack_of(2)[0]).loss_sum.backward()
    optimizer.step()
    size = ModelSize.measure(ToolLLM.sketch(config, load_shape(backbone)[0]), on_gpu=False)
    assert size == ModelSize.measure(mllm, on_gpu=False)
    assert size.trainable + size.frozen == sum(parameter.numel() for parameter in mllm.parameters())
    states = compute_state_bytes(size, zero_stage=0, workers=2)
    assert states.weights == sum(parameter.numel() * parameter.element_size() for parameter in mllm.parameters())
    assert states.gradients == sum(parameter.grad.nbytes for parameter in trained if parameter.grad is not None)
    moments = [state[key] for state in optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")]
    assert states.optimizer == sum(moment.nbytes for moment in moments)


def test_at_start_files_are_mapped_once_and_copied_where_the_type_is_another() -> None:
    """Vicuna-7B on 4 workers in bf16, by hand, its files in float16."""
    config = ModelConfig(backbone="lmsys/vicuna-7b-v1.5", dtype="bfloat16")
    size = ModelSize.measure(ToolLLM.sketch(config, load_shape(config.backbone)[0]), on_gpu=True)
    trained, files = 4 * size.trainable, 2 * size.frozen

    def start(stage: int, is_cast: bool, is_whole: bool = False) -> tuple[float, float]:
        found = compute_start_bytes(size, stage, 4, 2, is_cast, is_whole)
        return found.own, found.mapped

    assert start(2, is_cast=True) == start(3, is_cast=True, is_whole=True) == (files + trained, files)
    assert start(0, is_cast=False) == (trained, files)
    assert start(3, is_cast=True) == (files / 4 + 2 * 32000 * 4096 + trained, files)
    assert compute_export_bytes(size, is_cast=False) == trained
    assert compute_export_bytes(size, is_cast=True) == trained + 2 * size.adapter_weights


def test_zero_shares_out_one_state_after_the_other() -> None:
    """Vicuna-7B on 4 workers in bf16, by hand: 2 bytes a weight, 4 a gradient, 12 of optimizer a trained weight."""
    config = ModelConfig(backbone="lmsys/vicuna-7b-v1.5", dtype="bfloat16")
    size = ModelSize.measure(ToolLLM.sketch(config, load_shape(config.backbone)[0]), on_gpu=True)
    trained, total = size.trainable, size.trainable + size.frozen
    expected = {
        0: (2 * total, 4 * trained, 12 * trained),
        1: (2 * total, 4 * trained, 3 * trained),
        2: (2 * total, trained, 3 * trained),
        3: (total / 2, trained, 3 * trained),
    }
    for stage, by_hand in expected.items():
        states = compute_state_bytes(size, stage, 4)
        assert (states.weights, states.gradients, states.optimizer, states.offloaded) == (*by_hand, 0)
    offloaded = compute_state_bytes(size, 2, 4, offload_optimizer=True)
    assert (offloaded.optimizer, offloaded.offloaded) == (0, 3 * trained)
    quantized = ModelSize.measure(
        ToolLLM.sketch(config.model_copy(update={"quantize": "nf4"}), load_shape(config.backbone)[0]), on_gpu=True
    )
    assert 3.4e9 < quantized.frozen_bytes < 4.0e9, "6.5 billion weights in 4.127 bits, embedding and head in 16"
