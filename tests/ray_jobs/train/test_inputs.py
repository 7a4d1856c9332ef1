"""What a training is made of: the lengths of its batches."""

from __future__ import annotations

import subprocess
import sys

import pytest

from model.llm.backbone import is_slow_in
from ray_jobs.config import RunSpec
from ray_jobs.train.inputs import length_multiple

# Its own process, as memory that another test left would hide what this one takes. The backbone is SmolLM2 with one of
# thirty layers: what is kept is kept for a shape of matrices, of which every layer has the same.
EPOCH = """
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig

from data_pipeline.batches.encoding import EncodedQuestion
from data_pipeline.batches.packing import build_micro_batch
from model.llm.config import ModelConfig
from model.llm.tool_llm import to_tensors
from model.llm.tool_llm import ToolLLM
from ray_jobs.train.inputs import CPU_SEQUENCE_TOKENS

multiple, steps = map(int, sys.argv[1:])
torch.set_num_threads(1)
shape = LlamaConfig(
    hidden_size=576, intermediate_size=1536, num_hidden_layers=1, num_attention_heads=9, num_key_value_heads=3,
    vocab_size=49152, tie_word_embeddings=True,
)
config = ModelConfig(backbone="none", encoder_dim=64, lora_r=32, lora_target="all-linear", dtype="bfloat16")
mllm = ToolLLM.sketch(config, shape).to_empty(device="cpu").bfloat16().train()
for tensor in mllm.parameters():
    tensor.data.normal_(0.0, 0.02)
rng = np.random.default_rng(0)


def draw(low: int, high: int) -> np.ndarray:
    return rng.integers(0, 49152, rng.integers(low, high)).astype(np.int32)


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


for step in range(steps):
    n = int(rng.integers(2, 9))
    batch = build_micro_batch(
        [EncodedQuestion(draw(20, 121), [draw(4, 13)]) for _ in range(n)], np.arange(n), np.full(n, -1),
        pad_to_multiple=multiple, sequence_tokens=CPU_SEQUENCE_TOKENS,
    )
    mllm(to_tensors(batch, None, "cpu")).loss_sum.backward()
    mllm.zero_grad()
    print(resident_mib(), flush=True)
"""


@pytest.mark.parametrize(
    ("dtype", "use_gpu", "multiple"), [("float32", False, 1), ("bfloat16", False, 64), ("bfloat16", True, 128)]
)
def test_lengths_are_rounded_where_kernels_are_made_for_each(dtype: str, use_gpu: bool, multiple: int) -> None:
    spec = RunSpec.model_validate({"name": "x", "model": {"dtype": dtype}, "train": {"use_gpu": use_gpu}})
    assert length_multiple(spec) == multiple


def _run_epoch(multiple: int, steps: int) -> list[float]:
    """Resident memory after each step, in MiB."""
    done = subprocess.run(
        [sys.executable, "-c", EPOCH, str(multiple), str(steps)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [float(line) for line in done.stdout.split()]


@pytest.mark.slow
@pytest.mark.skipif(is_slow_in("bfloat16", "cpu"), reason="this processor has no instructions for bfloat16: no kernels")
def test_the_memory_of_a_training_in_bfloat16_stays_flat() -> None:
    spec = RunSpec.model_validate({"name": "x", "model": {"dtype": "bfloat16"}, "train": {"use_gpu": False}})
    flat = _run_epoch(length_multiple(spec), 40)
    assert max(flat[10:]) <= 1.05 * max(flat[:10])
    as_they_come = _run_epoch(1, 25)
    assert as_they_come[-1] > 1.1 * as_they_come[4], "odd lengths cost no memory: is rounding still of use?"
