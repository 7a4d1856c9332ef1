"""One rank of the data-parallel test: `python data_parallel_rank.py RANK WORLD_SIZE FOLDER BACKBONE`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from toy_batches import build_toy_mllm, gradients, run_step, toy_media, toy_questions


def main(rank: int, world_size: int, folder: Path, backbone: Path) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size)
    mllm = build_toy_mllm(backbone)
    questions = toy_questions(mllm, 9, seed=5)
    for layout in ("packed", "rows"):
        totals = torch.tensor(run_step(mllm, questions, toy_media(9, 5), layout, rank, world_size), dtype=torch.float64)
        dist.all_reduce(totals)
        averaged = gradients(mllm)
        for gradient in averaged.values():
            # What a data-parallel engine does: the mean over ranks. Times ranks / weight of the whole step, it is the
            # gradient of the mean loss over all answer tokens of the step, however they were dealt.
            dist.all_reduce(gradient)
            gradient.div_(world_size).mul_(world_size / totals[1].item())
        if rank == 0:
            save_file({**averaged, "totals": totals}, folder / f"{layout}.safetensors")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
