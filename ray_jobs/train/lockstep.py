"""Under ZeRO-3 every forward pass gathers weights from all ranks; here ranks make unlike passes all the same.

How many passes an answer takes depends on the answer. So before each pass the ranks agree on one that is due on some
rank; a rank to which another one is due, or none, makes it with a token of no account and throws the outcome away.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from enum import IntEnum
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from model.decode.tree_cache import decoding
from model.llm.tool_llm import ToolLLM


class Due(IntEnum):
    """What a rank is about to do. Of several the first has its turn: ranks of which one is behind meet again so."""

    EMBED = 0
    PROJECT = 1
    READ_EMBEDDINGS = 2
    READ_TOKENS = 3
    SCORE = 4
    NOTHING = 5


class Lockstep:
    """Keeps all ranks at the same passes of a model's parts while it is entered, which all of them must do."""

    def __init__(self, mllm: ToolLLM) -> None:
        causal_lm: Any = mllm.llm.get_base_model()
        self._mllm = mllm
        self._base: nn.Module = causal_lm.base_model
        self._parts: dict[nn.Module, Due] = {
            causal_lm.get_input_embeddings(): Due.EMBED,
            mllm.projector: Due.PROJECT,
            self._base: Due.READ_EMBEDDINGS,
            causal_lm.get_output_embeddings(): Due.SCORE,
        }
        self._device: torch.device = causal_lm.device
        token = torch.zeros(1, 1, dtype=torch.long, device=self._device)
        medium = torch.zeros(1, mllm.embed_dim, device=self._device, dtype=mllm.projector.weight.dtype)
        embedding = torch.zeros(1, 1, mllm.projector.out_features, device=self._device, dtype=causal_lm.dtype)
        self._passes: dict[Due, Callable[[], Any]] = {
            Due.EMBED: lambda: causal_lm.get_input_embeddings()(token),
            Due.PROJECT: lambda: mllm.projector(medium),
            Due.READ_EMBEDDINGS: lambda: self._base(inputs_embeds=embedding, use_cache=False),
            Due.READ_TOKENS: lambda: self._base(input_ids=token, use_cache=False),
            Due.SCORE: lambda: causal_lm.get_output_embeddings()(embedding[0]),
        }
        self._is_under_way = False  # a pass: parts that it calls belong to it
        self._hooks = ExitStack()

    def __enter__(self) -> Lockstep:
        for part in self._parts:  # before DeepSpeed's own hooks, which gather
            hook = part.register_forward_pre_hook(self._before, prepend=True, with_kwargs=True)
            self._hooks.callback(hook.remove)
        self._hooks.callback(self._base.register_forward_hook(self._after).remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.close()

    def finish(self) -> None:
        """Make the passes of other ranks until there is none."""
        with decoding(self._mllm):
            self._go_along(Due.NOTHING)

    def _before(self, part: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        if not self._is_under_way:
            self._go_along(Due.READ_TOKENS if "input_ids" in kwargs else self._parts[part])
            self._is_under_way = part is self._base

    def _after(self, *_: object) -> None:
        self._is_under_way = False

    def _go_along(self, due: Due) -> None:
        """Make the passes of other ranks until what is due here has its turn."""
        while (turn := self._agree(due)) is not due:
            self._is_under_way = True
            self._passes[turn]()
            self._is_under_way = False

    def _agree(self, due: Due) -> Due:
        first = torch.tensor(due.value, device=self._device)
        dist.all_reduce(first, op=dist.ReduceOp.MIN)
        return Due(int(first))
