"""The shapes of the papers' backbones, which need neither weights nor network."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from transformers import AutoConfig, LlamaConfig, OPTConfig, PretrainedConfig

from data_pipeline.errors import InputError
from model.tiny.backbone import build_tiny_backbone

# Touvron et al. 2023a, Table 2, and 2023b, section 2.2: both generations differ in the length of the context alone.
_LLAMA_7B: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
}
_LLAMA_13B: dict[str, Any] = {
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "vocab_size": 32000,
}
_LONGER = {"max_position_embeddings": 4096}  # Llama 2 and what was made of it; Llama's own 2048 is the default
# Zhang et al. 2022, Table 1
_OPT_13B: dict[str, Any] = {
    "hidden_size": 5120,
    "word_embed_proj_dim": 5120,
    "ffn_dim": 20480,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "vocab_size": 50272,
}
_SMOLLM2_135M: dict[str, Any] = {  # as its GGUF file says
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
SHAPES: dict[str, tuple[type[PretrainedConfig], dict[str, Any]]] = {
    "huggyllama/llama-7b": (LlamaConfig, _LLAMA_7B),
    "huggyllama/llama-13b": (LlamaConfig, _LLAMA_13B),
    "meta-llama/Llama-2-7b-hf": (LlamaConfig, _LLAMA_7B | _LONGER),
    "meta-llama/Llama-2-13b-hf": (LlamaConfig, _LLAMA_13B | _LONGER),
    "meta-llama/Llama-2-7b-chat-hf": (LlamaConfig, _LLAMA_7B | _LONGER),
    "meta-llama/Llama-2-13b-chat-hf": (LlamaConfig, _LLAMA_13B | _LONGER),
    "lmsys/vicuna-7b-v1.5": (LlamaConfig, _LLAMA_7B | _LONGER),
    "lmsys/vicuna-13b-v1.5": (LlamaConfig, _LLAMA_13B | _LONGER),
    "facebook/opt-13b": (OPTConfig, _OPT_13B),
    "smollm2_135m": (LlamaConfig, _SMOLLM2_135M),
}


def load_shape(backbone: str) -> tuple[PretrainedConfig, str]:
    """The config of a backbone, without its weights and without the network.

    Args:
        backbone: a folder, a hub id, or "tiny": the shape of a tiny backbone that no run has built yet, with as large a
            vocabulary as it may get.

    Returns:
        the config, and where it comes from, for people.

    Raises:
        InputError: it is neither here nor one of the papers'.
    """
    if backbone == "tiny":
        return _tiny_shape(), "model.tiny.backbone's defaults"
    try:
        config = AutoConfig.from_pretrained(backbone, local_files_only=True)
        return config, "its config.json"
    except (OSError, ValueError) as error:
        if backbone in SHAPES and not Path(backbone).exists():
            config_class, shape = SHAPES[backbone]
            return config_class(**shape), "the published shape"
        raise InputError(
            f"the shape of backbone {backbone!r} is not known here: it is no folder with a config.json, not in the "
            f"local Hugging Face cache, and none of {', '.join(SHAPES)}; download it first or give its folder."
        ) from error


def _tiny_shape() -> LlamaConfig:
    default = {name: parameter.default for name, parameter in inspect.signature(build_tiny_backbone).parameters.items()}
    return LlamaConfig(
        vocab_size=default["vocab_size"],
        hidden_size=default["hidden_size"],
        num_hidden_layers=default["n_layers"],
        num_attention_heads=default["n_heads"],
        intermediate_size=default["intermediate_size"],
        max_position_embeddings=default["max_positions"],
        tie_word_embeddings=False,
        dtype="float32",
    )
