"""One rank of the ZeRO tests: `python zero_rank.py RANK WORLD_SIZE FOLDER BACKBONE`.

Two ranks train a toy module under every stage, without a break and with one, and save a state under stage 2; then they
run the cases of `zero_mllm.py`. One rank goes on from that state under every stage. What each training came to is
written to FOLDER.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ray_jobs.train_options import TrainOptions

N_STEPS, BREAK_AFTER = 6, 3
N_ROWS, N_CHUNKS = 8, 4  # of a step
STAGES = (0, 1, 2, 3)
STATE = "state.safetensors"


class Toy(nn.Module):
    """Sizes that two ranks cannot share evenly, and weights that are not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(4, 6).requires_grad_(False)
        self.hidden = nn.Linear(6, 5)  # 5 values in the bias
        self.head = nn.Linear(5, 7)  # 35 values in the weight
        self.scale = nn.Parameter(torch.randn(7))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return ((self.head(torch.tanh(self.hidden(self.frozen(x)))) * self.scale - y) ** 2).sum()


def build_engine(stage: int, parameters: dict[str, Tensor] | None = None) -> Any:
    import deepspeed

    from ray_jobs.train.zero import deepspeed_config, named_trainables

    torch.manual_seed(0)
    module = Toy()
    if parameters is not None:
        missing, unexpected = module.load_state_dict(parameters, strict=False)
        assert not unexpected
        assert {name.split(".")[0] for name in missing} == {"frozen"}
    trainables: Any = [parameter for _, parameter in named_trainables(module)]
    options = TrainOptions(zero_stage=stage, lr=1e-2, weight_decay=0.1, max_grad_norm=0.5)  # type: ignore[arg-type]
    config = deepspeed_config(options, "float32")
    return deepspeed.initialize(model=module, model_parameters=trainables, config=config)[0]


def take_steps(engine: Any, first: int, end: int, rank: int, world_size: int) -> list[float]:
    """The mean loss of each step, over all ranks and micro steps; how a step is dealt changes nothing."""
    losses = []
    for step in range(first, end):
        for group in engine.optimizer.param_groups:
            group["lr"] = 1e-2 / (step + 1)
        generator = torch.Generator().manual_seed(step)
        x, y = torch.randn(N_ROWS, 4, generator=generator), torch.randn(N_ROWS, 7, generator=generator)
        total = torch.zeros(())
        for chunk in range(rank, N_CHUNKS, world_size):
            loss_sum = engine(x[chunk::N_CHUNKS], y[chunk::N_CHUNKS])
            engine.backward(loss_sum * (world_size / N_ROWS))
            total += loss_sum.detach()
        engine.step()
        dist.all_reduce(total)
        losses.append(total.item() / N_ROWS)
    return losses


def finish(engine: Any, losses: list[float], path: Path, rank: int) -> None:
    from ray_jobs.train.zero import gather_training_state

    parameters, moments = gather_training_state(engine)
    if rank == 0:
        save_file({"losses": torch.tensor(losses, dtype=torch.float64), **parameters, **moments}, path)


def go_on(stage: int, state: dict[str, Tensor], path: Path, rank: int, world_size: int) -> None:
    """Take the remaining steps from a gathered state."""
    from ray_jobs.train.zero import restore_training_state

    parameters = {name: value for name, value in state.items() if "/" not in name}
    moments = {name: value for name, value in state.items() if "/" in name}
    engine = build_engine(stage, parameters)
    restore_training_state(engine, parameters, moments, BREAK_AFTER)
    finish(engine, take_steps(engine, BREAK_AFTER, N_STEPS, rank, world_size), path, rank)


def main(rank: int, world_size: int, folder: Path, backbone: Path) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": str(rank)}
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    rendezvous = f"file://{folder}/rendezvous{world_size}"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=world_size)
    from ray_jobs.train.zero import disable_compiled_collectives, gather_training_state

    disable_compiled_collectives()
    if world_size > 1:
        from zero_mllm import run_cases

        run_cases(rank, folder, backbone)
        for stage in STAGES:
            engine = build_engine(stage)
            losses = take_steps(engine, 0, N_STEPS, rank, world_size)
            finish(engine, losses, folder / f"whole-stage{stage}.safetensors", rank)
            engine = build_engine(stage)
            take_steps(engine, 0, BREAK_AFTER, rank, world_size)
            parameters, moments = gather_training_state(engine)
            go_on(stage, parameters | moments, folder / f"broken-stage{stage}.safetensors", rank, world_size)
            if stage == 2:
                if rank == 0:
                    save_file(parameters | moments, folder / STATE)
                go_on(3, parameters | moments, folder / "from2-ranks2-stage3.safetensors", rank, world_size)
    else:
        for stage in STAGES:
            go_on(stage, load_file(folder / STATE), folder / f"from2-ranks1-stage{stage}.safetensors", rank, world_size)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
