"""The attention mask of a pack, from its one array `subtree_end` (see data_pipeline.batches.answer_tree)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

AttentionBackend = Literal["sdpa", "flex_attention"]


def build_mask(subtree_end: Tensor, backend: AttentionBackend, dtype: torch.dtype) -> Tensor | BlockMask:
    """Mask under which query q sees key k iff k <= q < subtree_end[k].

    Args:
        subtree_end: integer [B, T].
        backend: "sdpa" gives an additive mask [B, 1, T, T], 0 where seen and the lowest number elsewhere;
            "flex_attention" a BlockMask, which costs no T*T memory in the attention kernel and skips blocks that
            nobody sees.
        dtype: of the additive mask.
    """
    batch_size, n_tokens = subtree_end.shape
    if backend == "flex_attention":
        from torch.nn.attention.flex_attention import create_block_mask

        def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (key <= query) & (query < subtree_end[batch, key])

        return create_block_mask(sees, batch_size, None, n_tokens, n_tokens, device=str(subtree_end.device))
    index = torch.arange(n_tokens, device=subtree_end.device)
    query, key = index[:, None], index[None, :]
    seen = (key <= query) & (query < subtree_end[:, None, :])  # [B, T, T]
    mask = torch.zeros(seen.shape, dtype=dtype, device=subtree_end.device)
    return mask.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]  # [B, 1, T, T]
