"""One of two ranks that load a backbone in parts and train a little: `python partitioned_rank.py RANK FOLDER BACKBONE`.

Prints a line of JSON: the most memory that loading took beyond what was there before, that of the whole backbone, and
the losses; and the losses of the same training from a backbone that every rank loaded whole.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from toy_batches import ENCODER_DIM, toy_media, toy_questions

from data_pipeline.batches.packing import build_micro_batch
from model.llm.config import ModelConfig
from model.llm.tool_llm import ToolLLM, to_tensors
from ray_jobs.train_options import TrainOptions

N_STEPS, N_QUESTIONS = 2, 4


def own_bytes() -> int:
    """Memory of this process's own: without the pages of files, which all processes share and the system takes back."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


class Peak:
    """The most memory while it is open, beyond what was there at its start."""

    def __enter__(self) -> Peak:
        self.bytes, self._start, self._is_over = 0, own_bytes(), threading.Event()
        self._watch = threading.Thread(target=self._look, daemon=True)
        self._watch.start()
        return self

    def _look(self) -> None:
        while not self._is_over.wait(0.002):
            self.bytes = max(self.bytes, own_bytes() - self._start)

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._watch.join()


def train(mllm: ToolLLM, options: TrainOptions, rank: int) -> list[float]:
    from ray_jobs.train.zero import start_engine

    engine = start_engine(mllm, options)
    engine.train()
    losses = []
    for step in range(N_STEPS):
        questions = toy_questions(mllm, N_QUESTIONS, seed=10 * step + rank)
        batch = build_micro_batch(questions, np.arange(N_QUESTIONS), np.arange(N_QUESTIONS))
        loss_sum = engine(to_tensors(batch, toy_media(N_QUESTIONS, step)[batch.media_row], "cpu")).loss_sum
        engine.backward(loss_sum / 100)
        engine.step()
        total = loss_sum.detach().clone()
        dist.all_reduce(total)
        losses.append(total.item())
    return losses


def main(rank: int, folder: Path, backbone: Path) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    from ray_jobs.train.partitioned import build_model
    from ray_jobs.train.zero import disable_compiled_collectives

    disable_compiled_collectives()
    options = TrainOptions.model_validate({"zero_stage": 3, "lr": 1e-2})
    found = {}
    for dtype in ("float32", "bfloat16"):
        config = ModelConfig(backbone=str(backbone), encoder_dim=ENCODER_DIM, lora_dropout=0.0, dtype=dtype)
        with Peak() as peak:
            mllm = build_model(config, options)
        frozen: list[nn.Parameter] = [parameter for parameter in mllm.parameters() if not parameter.requires_grad]
        assert all(parameter.numel() == 0 for parameter in frozen), "a weight lies whole on a rank"
        n_bytes = sum(parameter.ds_numel * parameter.element_size() for parameter in frozen)  # pyright: ignore[reportAttributeAccessIssue]
        parted = train(mllm, options, rank)
        del mllm
        whole = train(ToolLLM.build(config), options, rank)
        found[dtype] = {"peak": peak.bytes, "model": n_bytes, "parted": parted, "whole": whole}
    print(json.dumps(found), flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
