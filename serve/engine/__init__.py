"""Questions of many callers to one model: gathered (questions), batched (batching), answered (answering)."""
