"""A key-value cache that grows as a tree behind every prompt of a batch.

Prompts run once. Whatever follows is appended as blocks of tokens, many per pass, and each block sees its prompt, its
own ancestors and itself only: the mask says which columns of the cache those are, and positions are depths. Rows grow
by themselves: they may join and leave between passes, and a pass may be some rows' only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

from data_pipeline.batches.encoding import MEDIA_SLOT_ID
from data_pipeline.errors import InputError
from model.decode.growing_cache import Columns, GrowingCache
from model.llm.attention import AttentionWindow
from model.llm.backbone import takes_packs

CPU_LENGTH_MULTIPLE = 32  # what prompts in bfloat16 on a CPU are padded to


@dataclass(frozen=True, eq=False)
class Prompt:
    """A tokenised question.

    Attributes:
        prompt_ids: int32 [P], bos first, `MEDIA_SLOT_ID` where the medium's vector goes.
        media: float [E], the medium's embedding; None where the question has none.
        words: of the question, which a wide head reads (`model.wide`).
    """

    prompt_ids: np.ndarray
    media: np.ndarray | None = None
    words: str = ""

    def __post_init__(self) -> None:
        if len(self.prompt_ids) == 0:
            raise InputError("a prompt has no tokens; encode the question first.")
        n_slots = int((np.asarray(self.prompt_ids) == MEDIA_SLOT_ID).sum())
        if n_slots != (self.media is not None):
            raise InputError(
                f"a prompt has {n_slots} media slots and {'a' if self.media is not None else 'no'} media vector; "
                "give one vector where there is a slot, none where there is not."
            )


@dataclass
class DecodeStats:
    """What decoding cost; pass one in to have it filled, or the same one again to add up.

    Attributes:
        forward_passes: calls of the language model, the prompts' own included.
        prompt_tokens: tokens run with the prompts (forced beginnings included, padding not).
        answer_tokens: tokens run behind them.
        decisions: choices between children, or tokens chosen in free decoding.
    """

    forward_passes: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    decisions: int = 0


@dataclass(frozen=True)
class CachedPath:
    """The columns of one cache row that hold a token sequence, as ascending half-open spans."""

    spans: tuple[tuple[int, int], ...]

    @property
    def length(self) -> int:
        """Tokens in the sequence, which is also the position of the next one."""
        return sum(end - start for start, end in self.spans)

    def extended(self, start: int, end: int) -> CachedPath:
        """This path followed by the columns from `start` to `end`."""
        *earlier, (first, last) = self.spans
        if last == start:
            return CachedPath((*earlier, (first, end)))
        return CachedPath((*self.spans, (start, end)))


def causal_lm_of(mllm: Any) -> Any:
    """The `...ForCausalLM` module of a `ToolLLM`, adapters in place."""
    return mllm.llm.get_base_model() if isinstance(mllm.llm, PeftModel) else mllm.llm


@contextmanager
def decoding(mllm: Any) -> Iterator[None]:
    """Inference mode without dropout, on SDPA: the tree's boolean 4-D mask is nothing that other backends take.

    Raises:
        InputError: the backbone takes no explicit positions or no 4-D mask.
    """
    causal_lm = causal_lm_of(mllm)
    if reason := takes_packs(causal_lm):
        name = type(causal_lm).__name__
        raise InputError(f"a {name} cannot decode here: {reason}; take a backbone such as Llama, Vicuna or OPT.")
    attention = causal_lm.config._attn_implementation
    # walking all modules takes a millisecond, in a pass that may take ten
    in_training = [module for module in mllm.modules() if module.training] if mllm.training else []
    if in_training:
        mllm.eval()
    if attention != "sdpa":
        causal_lm.set_attn_implementation("sdpa")
    try:
        with torch.inference_mode():
            yield
    finally:
        if attention != "sdpa":
            causal_lm.set_attn_implementation(attention)
        for module in in_training:
            module.training = True


def token_logits(mllm: Any, hidden: Tensor, token_ids: np.ndarray | None = None) -> Tensor:
    """Logits of all tokens, or of `token_ids` alone by the head's rows.

    Args:
        mllm: a `ToolLLM`.
        hidden: [N, D] last hidden states.
        token_ids: int [U] or None.

    Returns:
        float32 [N, U], or [N, V].
    """
    head = causal_lm_of(mllm).get_output_embeddings()
    if token_ids is None:
        return head(hidden).float()
    ids = torch.as_tensor(token_ids, dtype=torch.long, device=hidden.device)
    # An adapter on the head or a quantised head cannot be cut into rows. PEFT's wrapper of a fully trained head can:
    # its `weight` is the trained one.
    if isinstance(head, BaseTunerLayer) or not head.weight.is_floating_point():
        return token_logits(mllm, hidden)[:, ids]
    logits = hidden.float() @ head.weight[ids].float().T  # [N, D] x [D, U]
    bias = getattr(head, "bias", None)
    return logits if bias is None else logits + bias[ids].float()


def pad_prompts(
    prompts: Sequence[Prompt], suffix: np.ndarray, multiple: int = 1, longest: int = 1 << 30
) -> tuple[np.ndarray, np.ndarray]:
    """Every prompt followed by the same tokens, padded on the right.

    Args:
        prompts: B of them.
        suffix: int [F], the tokens behind each.
        multiple: T is a multiple of it, unless that would exceed `longest`.
        longest: see `multiple`.

    Returns:
        int64 ids [B, T] with zeros as padding (nobody sees it: any id of the vocabulary does), int64 lengths [B].
    """
    rows = [np.concatenate([prompt.prompt_ids, suffix]) for prompt in prompts]
    lengths = np.array([len(row) for row in rows])
    width = int(lengths.max())
    ids = np.zeros((len(rows), max(width, min(width + -width % multiple, longest))), dtype=np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    return ids, lengths


def stack_media(prompts: Sequence[Prompt], device: torch.device) -> Tensor | None:
    """float32 [B, E] with zeros for prompts without a medium; None if no prompt has one."""
    vectors = [prompt.media for prompt in prompts]
    shapes = {np.shape(vector) for vector in vectors if vector is not None}
    if not shapes:
        return None
    if len(shapes) > 1:
        raise InputError(f"media vectors of shapes {sorted(shapes)} in one batch; use one encoder for all of them.")
    zero = np.zeros(shapes.pop(), dtype=np.float32)
    stacked = np.stack([zero if vector is None else np.asarray(vector, dtype=np.float32) for vector in vectors])
    return torch.from_numpy(stacked).to(device)


def _keeps_kernels(mllm: Any) -> bool:
    """Whether every new length costs memory for ever: oneDNN keeps a kernel for each, some MiB a piece with 135 M
    parameters in bfloat16 (docs/results.md)."""
    weight = causal_lm_of(mllm).get_input_embeddings().weight
    return weight.device.type == "cpu" and weight.dtype is torch.bfloat16


class TreeCache:
    """The prompts of a batch, run once, and the trees that grow behind them."""

    def __init__(self, mllm: Any, prompts: Sequence[Prompt], forced: np.ndarray, stats: DecodeStats) -> None:
        """Run the prompts, each followed by the same `forced` tokens (int [F], may be empty).

        Leaves `paths` (one per row: prompt and forced tokens) and `hidden` [B, D] (at the last of these tokens).
        """
        self._base = causal_lm_of(mllm).base_model
        self._stats = stats
        self._multiple = CPU_LENGTH_MULTIPLE if _keeps_kernels(mllm) else 1
        self._window: AttentionWindow = mllm.window
        self._backbone: str = mllm.config.backbone
        self._cache = GrowingCache(len(prompts))
        self._positions = np.zeros((len(prompts), 0), dtype=np.int64)  # [B, columns], of every cached column
        self.paths: list[CachedPath] = []
        if not prompts:  # rows come by `add_row`
            return
        ids, lengths = pad_prompts(prompts, forced, self._multiple, mllm.max_positions)  # [B, T]
        self.paths = [CachedPath(((0, int(length)),)) for length in lengths]
        embeds = mllm.embed_prompt(
            torch.from_numpy(ids).to(self._device), stack_media(prompts, self._device)
        )  # [B, T, D]
        self._positions = np.tile(np.arange(ids.shape[1]), (len(ids), 1))
        hidden = self._run(range(len(ids)), lengths.tolist(), None, self._positions, inputs_embeds=embeds)
        self.hidden = hidden[torch.arange(len(ids)), torch.from_numpy(lengths - 1)]  # [B, T, D] -> [B, D]
        stats.prompt_tokens += int(lengths.sum())

    def __len__(self) -> int:
        return len(self._cache.lengths)

    def add_row(self, columns: Columns | None = None, n_tokens: int = 0) -> CachedPath:
        """Append a row that begins with the first `n_tokens` of what another row read (`copy_path`); nothing is run."""
        self._cache.append_rows(np.array([n_tokens]), columns or [])
        self._append_positions(np.arange(n_tokens)[None])
        return CachedPath(((0, n_tokens),))

    def copy_path(self, row: int, path: CachedPath) -> Columns:
        """The keys and values along a path of a row, for `add_row`."""
        columns = np.concatenate([np.arange(start, end) for start, end in path.spans])
        return self._cache.copy_columns(row, torch.from_numpy(columns).to(self._device))

    def append_rows(self, other: TreeCache) -> None:
        """Take over the prompts of another cache, behind the own ones; neither may have been extended yet."""
        self._cache.append_rows(other._cache.lengths, other._cache.states)
        self._append_positions(other._positions)
        self.paths += other.paths
        self.hidden = torch.cat([self.hidden, other.hidden])  # [B, D] and [N, D] -> [B + N, D]

    def extend(
        self,
        blocks: Sequence[Sequence[tuple[CachedPath, np.ndarray]]],
        rows: Sequence[int] | None = None,
        *,
        is_prompt: bool = False,
    ) -> tuple[list[list[CachedPath]], Tensor]:
        """Append blocks of tokens in one pass.

        Args:
            blocks: per row any number of (path that the block continues, its tokens int [L]).
            rows: those that take part; None for all of them.
            is_prompt: they are parts of prompts, of any length, and counted and padded as these are.

        Returns:
            per row and block the path that ends in it; hidden states [N, D] at the blocks' last tokens, N counting
            through all rows' blocks in order.
        """
        rows = range(len(self)) if rows is None else rows
        starts = self._cache.lengths[list(rows)].tolist()
        widths = [sum(len(tokens) for _, tokens in row) for row in blocks]
        width = max(widths)
        if is_prompt:
            width += -width % self._multiple
        n_columns = max(starts) + width
        ids = np.zeros((len(blocks), width), dtype=np.int64)
        positions = np.zeros_like(ids)
        visible = np.zeros((len(blocks), width, n_columns), dtype=bool)
        visible[:, :, 0] = True  # the first prompt token is everyone's ancestor; padding needs something to look at
        self._append_positions(np.zeros((0, n_columns), dtype=np.int64))
        paths: list[list[CachedPath]] = []
        last: list[tuple[int, int]] = []
        for i, (number, start, row) in enumerate(zip(rows, starts, blocks, strict=True)):
            offset = 0
            paths.append([])
            for path, tokens in row:
                end = offset + len(tokens)
                ids[i, offset:end] = tokens
                positions[i, offset:end] = path.length + np.arange(len(tokens))
                for first, beyond in path.spans:
                    visible[i, offset:end, first:beyond] = True
                visible[i, offset:end, start + offset : start + end] = _lower_triangle(len(tokens))
                paths[i].append(path.extended(start + offset, start + end))
                last.append((i, end - 1))
                offset = end
            self._positions[number, start : start + offset] = positions[i, :offset]
        if is_prompt:
            self._stats.prompt_tokens += sum(widths)
        else:
            self._stats.answer_tokens += sum(widths)
        self._window.check(int(positions.max()) + 1, self._backbone)
        # padding stands on the right: before anything was read, causal is enough
        is_causal = max(starts) == 0 and all(len(row) == 1 for row in blocks)
        hidden = self._run(
            rows, widths, None if is_causal else visible, positions, input_ids=torch.from_numpy(ids).to(self._device)
        )
        row_index, column_index = torch.tensor(last).T
        return paths, hidden[row_index, column_index]  # [B, Q, D] -> [N, D]

    def select_rows(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; a row may be taken several times. Paths stay valid."""
        self._cache.select_rows(rows)
        self._positions = self._positions[list(rows)]

    @property
    def _device(self) -> torch.device:
        return self._base.device

    def _append_positions(self, others: np.ndarray) -> None:
        """Those of further rows, int64 [N, columns]; rows of either become as wide as the others."""
        width = max(self._positions.shape[1], others.shape[1])
        both = [np.pad(rows, ((0, 0), (0, width - rows.shape[1]))) for rows in (self._positions, others)]
        self._positions = np.concatenate(both)

    def _run(
        self,
        rows: Sequence[int],
        widths: Sequence[int],
        visible: np.ndarray | None,
        positions: np.ndarray,
        **inputs: Tensor,
    ) -> Tensor:
        """One pass of the base model without its head: hidden states [b, Q, D] of b rows; plain causal attention where
        `visible` is None. Of each row's Q tokens the first ones count, as many as `widths` says."""
        self._cache.begin_pass(rows, positions.shape[1], self._device)
        masks = None
        if visible is not None:
            columns = self._positions[list(rows), : visible.shape[2]]
            masks = self._window.masks(partial(self._mask, visible, positions, columns))
        output = self._base(
            attention_mask=masks,
            position_ids=torch.from_numpy(positions).to(self._device),
            past_key_values=self._cache,
            use_cache=True,
            **inputs,
        )
        self._cache.end_pass(rows, widths)
        self._stats.forward_passes += 1
        return output.last_hidden_state

    def _mask(self, visible: np.ndarray, positions: np.ndarray, columns: np.ndarray, window: int | None) -> Tensor:
        """What is added to the scores [b, 1, Q, columns]: every layer would make it of a boolean mask anew."""
        if window is not None:
            visible = visible & (positions[:, :, None] - columns[:, None, :] < window)
        seen = torch.from_numpy(visible).to(self._device)[:, None]
        return torch.zeros(seen.shape, dtype=self._base.dtype, device=self._device).masked_fill_(~seen, -torch.inf)


@lru_cache(maxsize=256)
def _lower_triangle(n: int) -> np.ndarray:
    """bool [n, n]: what a block's tokens see of their block."""
    return np.tri(n, dtype=bool)
