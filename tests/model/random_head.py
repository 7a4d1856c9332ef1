"""A wide head whose every weight is random."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from model.wide.head import N_COLUMNS, WeightedHead, WideHead


def make_head(tool_ids: Sequence[str], embed_dim: int = 6, scale: float = 4.0) -> WeightedHead:
    generator = np.random.default_rng(2)
    weights = generator.normal(size=(N_COLUMNS, len(tool_ids))).astype(np.float16)
    media = generator.normal(size=(embed_dim, len(tool_ids))).astype(np.float16)
    head = WideHead(tuple(tool_ids), np.ones(N_COLUMNS, dtype=np.float32), weights, media, scale)
    return WeightedHead(head, 0.4)
