"""A tool with a model that takes its time, to load and to work. Its process loads this file by its path."""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path

from serve.tools.models import LoadedModel, ModelCache
from serve.tools.spec import Argument, ToolOutput, ToolSpec


@cache
def _loader(load_s: float):
    def load(_: str) -> LoadedModel:
        import torch

        time.sleep(load_s)
        return LoadedModel((torch.nn.Identity(),), 1)

    return load


def work(models: ModelCache, model_id: str, load_s: float, work_s: float) -> ToolOutput:
    """Load for so long, where it is not loaded, and make a pass every 10 ms for so long."""
    (network,) = models.get(model_id, _loader(load_s))
    end = time.monotonic() + work_s
    while time.monotonic() < end:
        network(0)
        time.sleep(0.01)
    return ToolOutput(f"{models.n_loads} loads")


ARGUMENTS = tuple(Argument(name, "number", "seconds") for name in ("load_s", "work_s"))
SLOW = ToolSpec(
    "local/slow", work, "A test.", ARGUMENTS, "text", method="model", model_id=str(Path(__file__).parent), timeout_s=1.0
)
