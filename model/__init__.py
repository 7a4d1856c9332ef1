"""ImageBind, the projector, the LoRA LLM, decoding, metrics and the bundle. Imports data_pipeline only."""
