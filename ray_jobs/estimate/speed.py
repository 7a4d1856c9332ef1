"""How fast this machine's CPUs train a model of a given shape: passes of a shallow copy of it, timed in its dtype.

What a core does in one number type says nothing of another (a few cores multiply bfloat16 by hardware, most do not),
and products of large matrices say little of a small model, so the model itself is timed.
"""

from __future__ import annotations

import copy
import os
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PretrainedConfig

from data_pipeline.batches.encoding import EncodedQuestion
from data_pipeline.batches.packing import build_micro_batch
from model.llm.config import ModelConfig
from model.llm.tool_llm import ToolLLM, to_tensors
from ray_jobs.estimate.cost import ModelSize, compute_flops

MAX_LAYER_PARAMETERS = 300_000_000  # of the copy; a layer at least
MIN_TOKENS = 32
PASS_S = 2.0  # longer passes are made with fewer tokens
TOTAL_S = 3.0
MIN_PASSES = 3
OTHERS_WIDTH = 1024  # of the matrices that stand for other workers


@dataclass(frozen=True)
class MicroStep:
    """What one worker computes at a time, in means.

    Attributes:
        tokens: in all.
        question_tokens: of one question's tree.
        answers: of one question.
        answer_tokens: of one answer; they bear loss.
    """

    tokens: float
    question_tokens: float
    answers: float
    answer_tokens: float


def measure_training_flops(
    config: ModelConfig, shape: PretrainedConfig, micro_step: MicroStep, threads: int, workers: int
) -> float:
    """Operations a second, by the count of `compute_flops`, of one worker's forward and backward passes.

    Args:
        config: of the model, `encoder_dim` resolved.
        shape: of the backbone; of its layers a few are timed.
        micro_step: what a worker computes at a time.
        threads: of a worker.
        workers: that compute at the same time on this machine; others are stood for by matrix products.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with _others(workers - 1, threads, getattr(torch, config.dtype)):
            return _time_passes(_build_copy(config, shape), micro_step, int(shape.vocab_size))
    finally:
        torch.set_num_threads(before)


def count_parallel(workers: int, threads: int) -> int:
    """How many of so many workers this machine's cores carry at a time."""
    return max(1, min(workers, (os.cpu_count() or 1) // threads))


def _build_copy(config: ModelConfig, shape: PretrainedConfig) -> ToolLLM:
    """The model with fewer layers and weights from anywhere, as DeepSpeed casts it."""
    size = ModelSize.measure(ToolLLM.sketch(config, shape), on_gpu=False)
    layer_parameters = max(1, size.layer_weights // size.n_layers)
    shallow = copy.deepcopy(shape)
    shallow.num_hidden_layers = max(1, min(size.n_layers, MAX_LAYER_PARAMETERS // layer_parameters))
    if getattr(shallow, "layer_types", None):
        shallow.layer_types = shallow.layer_types[: shallow.num_hidden_layers]
    mllm = ToolLLM.sketch(config, shallow).to_empty(device="cpu")
    with torch.no_grad():
        for tensor in [*mllm.parameters(), *mllm.buffers()]:
            if tensor.is_floating_point():
                tensor.normal_(0.0, 0.02)
            else:
                tensor.zero_()
    return mllm.to(getattr(torch, config.dtype)).train()


def _time_passes(mllm: ToolLLM, micro_step: MicroStep, vocabulary: int) -> float:
    size = ModelSize.measure(mllm, on_gpu=False)

    def run(max_tokens: float) -> tuple[float, float, int]:
        """Operations, seconds and tokens of one pass."""
        batch, n_tokens = _build_pack(micro_step, max_tokens, vocabulary)
        start = time.perf_counter()
        mllm(batch).loss_sum.backward()
        seconds = time.perf_counter() - start
        mllm.zero_grad()
        return compute_flops(size, n_tokens, len(batch["loss_position"]), n_tokens**2, False), seconds, n_tokens

    run(MIN_TOKENS)  # warms up
    _, seconds, n_tokens = run(MIN_TOKENS)
    max_tokens = min(micro_step.tokens, max(MIN_TOKENS, n_tokens * PASS_S / seconds))
    rates: list[float] = []
    end_s = time.perf_counter() + TOTAL_S
    while len(rates) < MIN_PASSES or time.perf_counter() < end_s:
        flops, seconds, _ = run(max_tokens)
        rates.append(flops / seconds)
    return statistics.median(rates)


def _build_pack(micro_step: MicroStep, max_tokens: float, vocabulary: int) -> tuple[dict[str, torch.Tensor], int]:
    """A pack of mean questions, of at most about so many tokens but one question at least; its tensors and tokens."""
    rng = np.random.default_rng(0)
    n_answers = max(1, round(micro_step.answers))
    n_answer = max(1, round(micro_step.answer_tokens))
    n_prompt = max(1, round(min(micro_step.question_tokens, max_tokens)) - n_answers * n_answer)
    n_questions = max(1, round(max_tokens / (n_prompt + n_answers * n_answer)))

    def draw(length: int) -> np.ndarray:
        return rng.integers(0, vocabulary, length).astype(np.int32)

    questions = [
        EncodedQuestion(draw(n_prompt), [draw(n_answer) for _ in range(n_answers)]) for _ in range(n_questions)
    ]
    batch = build_micro_batch(questions, np.arange(n_questions), np.full(n_questions, -1))
    return to_tensors(batch, None, "cpu"), batch.input_ids.size


@contextmanager
def _others(workers: int, threads: int, dtype: torch.dtype) -> Iterator[None]:
    """Keep other cores busy, which share caches, memory and perhaps arithmetic units with those that are timed."""
    is_over = threading.Event()

    def multiply() -> None:
        torch.set_num_threads(threads)
        matrix = torch.rand(OTHERS_WIDTH, OTHERS_WIDTH).to(dtype)
        while not is_over.is_set():
            torch.mm(matrix, matrix)

    others = [threading.Thread(target=multiply, name=f"other-{number}", daemon=True) for number in range(workers)]
    for other in others:
        other.start()
    try:
        yield
    finally:
        is_over.set()
        for other in others:
            other.join()
