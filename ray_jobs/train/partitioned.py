"""ZeRO-3 from the first byte: a backbone that lies in parts on the ranks while it is loaded, and whole on none of them.

Hugging Face's loading does so while a ZeRO-3 config of DeepSpeed's is alive (`HfDeepSpeedConfig`): rank 0 reads the
files, one weight at a time goes to all, and each rank keeps its part.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from transformers.integrations import HfDeepSpeedConfig

from model.llm.config import ModelConfig
from model.llm.tool_llm import ToolLLM
from ray_jobs.train.zero import deepspeed_config
from ray_jobs.train_options import TrainOptions

M_MMAP_THRESHOLD = -3  # of glibc's mallopt
BLOCK_BYTES = 1 << 18
LARGEST_BLOCK_BYTES = 1 << 25  # what glibc's own threshold grows to


def build_model(config: ModelConfig, train: TrainOptions) -> ToolLLM:
    """The model of a rank: `ToolLLM.build`, under ZeRO-3 with a backbone of which each rank holds its part.

    A collective call under ZeRO-3. Modules that are trained whole are copied of the backbone's, which has to be there
    for that, so such a model is loaded whole on every rank and parted afterwards.
    """
    if train.zero_stage < 3 or config.modules_to_save:
        return ToolLLM.build(config)
    parted = HfDeepSpeedConfig(deepspeed_config(train, config.dtype))  # it counts as long as something refers to it
    with nullcontext() if train.use_gpu else _giving_back():
        mllm = ToolLLM.build(config)
    del parted
    for parameter in mllm.parameters():  # as DeepSpeed does it where no parameter is parted yet
        if parameter.requires_grad:
            parameter.data = parameter.data.to(getattr(torch, config.dtype))
    return mllm


@contextmanager
def _giving_back() -> Iterator[None]:
    """Return freed memory to the system: glibc would keep, for every weight that passed through, what held it whole."""
    libc = ctypes.CDLL("libc.so.6") if sys.platform == "linux" else None
    if libc is None or not hasattr(libc, "mallopt"):
        yield
        return
    libc.mallopt(M_MMAP_THRESHOLD, BLOCK_BYTES)
    try:
        yield
    finally:
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST_BLOCK_BYTES)
        libc.malloc_trim(0)
