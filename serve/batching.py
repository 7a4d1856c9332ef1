"""Batch limits that are known only when a replica starts."""

from __future__ import annotations

from typing import Any


def set_batching(batched_method: Any, max_batch_size: int, batch_wait_timeout_s: float) -> None:
    """Set the limits of a method under `@serve.batch`, whose type does not tell that it can be set."""
    batched_method.set_max_batch_size(max_batch_size)
    batched_method.set_batch_wait_timeout_s(batch_wait_timeout_s)
