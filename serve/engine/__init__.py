"""Questions of many callers to one model: gathered, batched, searched."""
