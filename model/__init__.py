"""ImageBind, the projector, the LoRA LLM, decoding under the catalogue, metrics and the bundle. Imports data_pipeline only."""
