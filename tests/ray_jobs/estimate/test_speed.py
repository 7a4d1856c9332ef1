"""The measured speed, against passes of a real model of another depth over questions of words."""

from __future__ import annotations

import statistics
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig

from data_pipeline.batches.encoding import encode_question
from data_pipeline.batches.packing import build_micro_batch
from model.llm.backbone import is_slow_in
from model.llm.config import ModelConfig
from model.llm.tool_llm import ToolLLM, to_tensors
from model.tiny.backbone import build_tiny_backbone
from ray_jobs.estimate import speed
from ray_jobs.estimate.cost import ModelSize, compute_flops
from ray_jobs.estimate.speed import MicroStep, count_parallel, measure_training_flops

N_QUESTIONS = 16


_HAS_BFLOAT16 = pytest.mark.skipif(is_slow_in("bfloat16", "cpu"), reason="no bfloat16 in this processor")


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=_HAS_BFLOAT16)])
def test_within_a_factor_of_two_of_a_real_model(dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the thread's own clock, so that whatever else the machine does slows neither."""
    monkeypatch.setattr(time, "perf_counter", time.thread_time)
    monkeypatch.setattr(speed, "TOTAL_S", 0.5)
    monkeypatch.setattr(speed, "MAX_LAYER_PARAMETERS", 2_500_000)  # two of the four layers
    texts = [f"please improve picture number {number} for me, it is dark" for number in range(N_QUESTIONS)]
    folder = build_tiny_backbone(
        tmp_path / "tiny", texts, vocab_size=400, hidden_size=320, n_layers=4, n_heads=4, intermediate_size=768
    )
    config = ModelConfig(backbone=str(folder), encoder_dim=16, lora_target="all-linear", dtype=dtype)
    mllm = ToolLLM.build(config).to(getattr(torch, dtype)).train()  # as DeepSpeed casts it
    questions = [encode_question(mllm.tokenizer, text, False, ["lab/dehaze", "lab/deblur"]) for text in texts]
    batch = to_tensors(build_micro_batch(questions, np.arange(N_QUESTIONS), np.full(N_QUESTIONS, -1)), None, "cpu")
    n_tokens, n_losses = batch["input_ids"].numel(), len(batch["loss_position"])
    flops = compute_flops(ModelSize.measure(mllm, on_gpu=False), n_tokens, n_losses, n_tokens**2, False)
    rates = []
    for _ in range(6):
        start = time.thread_time()
        mllm(batch).loss_sum.backward()
        rates.append(flops / (time.thread_time() - start))
    answers = [answer for question in questions for answer in question.answers]
    micro_step = MicroStep(
        tokens=n_tokens,
        question_tokens=n_tokens / N_QUESTIONS,
        answers=2,
        answer_tokens=sum(len(answer) for answer in answers) / len(answers),
    )
    estimate = measure_training_flops(config, AutoConfig.from_pretrained(folder), micro_step, threads=1, workers=1)
    assert 0.5 < estimate / statistics.median(rates) < 2


def test_others_are_busy_meanwhile_and_gone_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "TOTAL_S", 0.05)
    names: list[set[str]] = []
    build = speed._build_copy

    def look(config: ModelConfig, shape: object) -> ToolLLM:
        names.append({thread.name for thread in threading.enumerate()})
        return build(config, shape)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(speed, "_build_copy", look)
    shape = AutoConfig.for_model("llama", hidden_size=32, intermediate_size=64, num_hidden_layers=1, vocab_size=300,
                                 num_attention_heads=2)  # fmt: skip
    config, micro_step, before = ModelConfig(encoder_dim=8), MicroStep(64, 32, 1, 8), torch.get_num_threads()
    assert measure_training_flops(config, shape, micro_step, threads=2, workers=3) > 0
    assert {"other-0", "other-1"} <= names[0]
    assert "other-2" not in names[0]
    assert not {thread.name for thread in threading.enumerate()} & {"other-0", "other-1"}
    assert torch.get_num_threads() == before


def test_workers_beyond_the_cores_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    assert [count_parallel(*shape) for shape in ((1, 1), (4, 1), (9, 1), (2, 2), (3, 2), (1, 9))] == [1, 4, 4, 2, 2, 1]
