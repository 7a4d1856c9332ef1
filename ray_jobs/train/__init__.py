"""A training run: Ray Train workers, DeepSpeed, checkpoints, validation."""
