"""Records to tokens, packs and optimizer steps: what a training or an evaluation reads."""
