"""Configuration of the multimodal LLM: only what shapes the model; how it is trained belongs to the run config."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class ModelConfig(BaseModel):
    """What `ToolLLM.build` needs; the adapter's defaults are those of MLLM-Tool (section 4.1)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    backbone: str = Field(
        default="tiny",
        description="Hugging Face id or local folder of a causal LLM with its tokenizer; or a GGUF file, smollm2_135m "
        "(both converted at first use), or tiny (made from the corpus)",
    )
    encoder_dim: int = Field(default=1024, gt=0, description="E, width of the media vectors; 1024 for imagebind_huge")
    adapter: Literal["lora", "rslora", "dora"] = Field(
        default="lora", description="rslora: scaled by lora_alpha / sqrt(lora_r); dora: direction and size apart"
    )
    quantize: Literal["none", "nf4"] = Field(
        default="none", description="nf4: QLoRA, the frozen backbone in 4 bits; needs CUDA and bitsandbytes"
    )
    lora_r: int = Field(default=32, gt=0, description="rank of the adapter")
    lora_alpha: int = Field(default=32, gt=0, description="the adapter's output is scaled by lora_alpha / lora_r")
    lora_dropout: float = Field(default=0.1, ge=0, lt=1, description="dropout before the adapter, in training")
    lora_target: Literal["attention", "all-linear"] = Field(
        default="attention", description="which linear layers are adapted"
    )
    modules_to_save: list[str] = Field(
        default_factory=list, description="modules trained whole beside the adapter, e.g. embed_tokens and lm_head"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="of the frozen backbone; float16: for GPUs without bfloat16, such as V100 and T4"
    )
    attention: Literal["auto", "sdpa", "flex_attention"] = Field(
        default="auto", description="auto: flex_attention on CUDA where the backbone allows it, else sdpa"
    )
    gradient_checkpointing: bool = Field(
        default=False, description="recompute activations in the backward pass to save memory"
    )
    seed: int = Field(default=0, description="of the adapter's and the projector's first weights")
