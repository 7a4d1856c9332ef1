"""What HTTP, batching and the agent's loop cost beside the model, each held against a goal in the same run."""
