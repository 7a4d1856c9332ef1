"""Loading an open LLM and its tokenizer, and the checks that say early and clearly what it cannot do."""

from __future__ import annotations

import inspect
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from data_pipeline.errors import InputError
from model.llm.attention import AttentionBackend, choose_backend
from model.llm.config import ModelConfig

# The query, key, value and output projections under the names that the architectures give them.
ATTENTION_LINEARS = (
    ("q_proj", "k_proj", "v_proj", "o_proj"),  # Llama, Vicuna, Mistral, Qwen, Gemma
    ("q_proj", "k_proj", "v_proj", "out_proj"),  # OPT, GPT-J
    ("qkv_proj", "o_proj"),  # Phi-3
    ("query_key_value", "dense"),  # Falcon, GPT-NeoX
)

# What `layer_types` of a config calls layers that a mask governs; others (linear attention, convolutions) heed none.
ATTENTION_LAYERS = {"full_attention", "sliding_attention", "chunked_attention", "attention"}


def read_shape(backbone: str) -> PretrainedConfig:
    """The backbone's config; InputError where there is none."""
    _check_location(backbone)
    try:
        return AutoConfig.from_pretrained(backbone)
    except (OSError, ValueError) as error:
        raise _unloadable("config", backbone, error) from error


def load_tokenizer(backbone: str) -> Any:
    """Load the backbone's tokenizer.

    Raises:
        InputError: there is none, or it has tokens that the backbone's embedding has no row for.
    """
    _check_location(backbone)
    try:
        tokenizer = AutoTokenizer.from_pretrained(backbone)
        config = AutoConfig.from_pretrained(backbone)
    except (OSError, ValueError) as error:
        raise _unloadable("tokenizer", backbone, error) from error
    n_rows = getattr(config.get_text_config(), "vocab_size", None)  # what the embedding is built, and loaded, with
    n_tokens = max(tokenizer.get_vocab().values(), default=-1) + 1
    if n_rows is not None and n_tokens > n_rows:
        raise InputError(
            f"the tokenizer of backbone {backbone!r} has {n_tokens} tokens, but its embedding has {n_rows} rows "
            "(vocab_size); take the tokenizer that belongs to it, or resize the embedding (resize_token_embeddings) "
            "and save both."
        )
    return tokenizer


def is_slow_in(dtype: str, device: str) -> bool:
    """Whether a processor has no instructions for a dtype, in which a model then takes some eight times as long."""
    if device != "cpu":
        return False
    has_instructions = {
        "bfloat16": torch.ops.mkldnn._is_mkldnn_bf16_supported,
        "float16": torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }
    return dtype in has_instructions and not has_instructions[dtype]()


def load_backbone(config: ModelConfig) -> tuple[PreTrainedModel, AttentionBackend]:
    """Load the frozen LLM in the configured precision.

    Returns:
        the causal LLM and the attention backend that it runs on; a quantised LLM is on the current CUDA device already.

    Raises:
        InputError: for a backbone that cannot be found or loaded, and where it cannot be quantised or has not the
            attention that the config asks for.
    """
    _check_location(config.backbone)
    quantization = _quantization(config) if config.quantize != "none" else {}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        backend = choose_backend(config.attention, AutoConfig.from_pretrained(config.backbone), device, config.backbone)
        llm = AutoModelForCausalLM.from_pretrained(
            config.backbone, dtype=getattr(torch, config.dtype), attn_implementation=backend, **quantization
        )
    except InputError:
        raise
    except (OSError, ValueError, ImportError) as error:
        raise _unloadable("model", config.backbone, error) from error
    for name in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
        if getattr(llm.config, name, None) not in (None, 1, 1.0):
            raise InputError(
                f"backbone {config.backbone!r} rescales its logits ({name}), which is not supported; "
                "choose one with a plain linear head, such as Llama, Vicuna, Mistral, Qwen or OPT."
            )
    return llm, backend


def attach_adapter(llm: PreTrainedModel, config: ModelConfig) -> PeftModel:
    """Wrap the LLM with LoRA, rsLoRA or DoRA; its first weights come from `config.seed` on every rank alike."""
    saved = list(dict.fromkeys(config.modules_to_save))
    names = {name.rsplit(".", 1)[-1] for name, _ in llm.named_modules()}
    missing = [name for name in saved if name not in names]
    if missing:
        raise InputError(
            f"model.modules_to_save names {missing}, which backbone {config.backbone!r} does not have; its "
            f"input embedding and head are {_embedding_and_head_names(llm)}."
        )
    if getattr(llm.config, "tie_word_embeddings", False) and set(saved) & set(_embedding_and_head_names(llm)):
        raise InputError(
            f"backbone {config.backbone!r} ties its embedding and its head, so neither can be trained whole; "
            "leave model.modules_to_save empty or take an untied backbone."
        )
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules="all-linear" if config.lora_target == "all-linear" else _attention_linears(llm, config.backbone),
        modules_to_save=saved or None,
        use_rslora=config.adapter == "rslora",  # Kalajdzievski 2023, arXiv 2312.03732
        use_dora=config.adapter == "dora",  # Liu et al. 2024, arXiv 2402.09353
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        peft_model = get_peft_model(llm, lora)
    assert isinstance(peft_model, PeftModel)
    return peft_model


def takes_packs(llm: PreTrainedModel) -> str | None:
    """Why the LLM cannot run packed sequences, or None if it can: they need a 4-D mask and explicit positions.

    A 4-D mask reaches the attention unchanged in architectures that make theirs with transformers' `masking_utils`.
    """
    base = type(llm.base_model)
    if "position_ids" not in inspect.signature(base.forward).parameters or getattr(llm.config, "alibi", False):
        return "it takes no position_ids"
    if kinds := set(getattr(llm.config.get_text_config(), "layer_types", None) or ()) - ATTENTION_LAYERS:
        return f"its layers of type {', '.join(sorted(kinds))} read a sequence from end to end, without a mask"
    if not hasattr(sys.modules[base.__module__], "create_causal_mask"):
        return "it takes no ready-made 4-D attention mask"
    return None


def _quantization(config: ModelConfig) -> dict[str, Any]:
    """Arguments of `from_pretrained` for QLoRA (Dettmers et al. 2023, arXiv 2305.14314): NF4, scales quantised as well.

    What is not a linear layer stays in `config.dtype`; the head does too. PEFT freezes all of it, and checkpointing
    without re-entrance needs no gradient at the embeddings: there is nothing else to prepare for training.
    """
    needs = {"CUDA": torch.cuda.is_available(), "bitsandbytes": find_spec("bitsandbytes") is not None}
    missing = [name for name, is_there in needs.items() if not is_there]
    if missing:
        raise InputError(
            f"model.quantize={config.quantize} needs {' and '.join(needs)}, but this machine has no "
            f"{' and no '.join(missing)}; set model.quantize=none, or run where both are."
        )
    four_bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=config.quantize,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float16 if config.dtype == "float16" else torch.bfloat16,
    )
    return {"quantization_config": four_bits, "device_map": {"": torch.cuda.current_device()}}


def _attention_linears(llm: nn.Module, backbone: str) -> list[str]:
    linears = {name.rsplit(".", 1)[-1] for name, module in llm.named_modules() if isinstance(module, nn.Linear)}
    for names in ATTENTION_LINEARS:
        if linears.issuperset(names):
            return list(names)
    raise InputError(
        f"the attention projections of backbone {backbone!r} have unknown names (its linear layers are "
        f"{sorted(linears)}); set model.lora_target to all-linear."
    )


def _embedding_and_head_names(llm: PreTrainedModel) -> list[str]:
    ends = (llm.get_input_embeddings(), llm.get_output_embeddings())
    return [name.rsplit(".", 1)[-1] for name, module in llm.named_modules() if any(module is end for end in ends)]


def _check_location(backbone: str) -> None:
    if backbone == "tiny":
        raise InputError(
            "backbone 'tiny' is a stand-in that each run builds from its corpus; give the folder that "
            "model.tiny.backbone.build_tiny_backbone wrote, or another backbone."
        )
    looks_local = backbone.startswith((".", "/", "~")) or backbone.count("/") > 1
    path = Path(backbone)
    if looks_local and not path.is_dir():
        raise InputError(
            f"there is no backbone folder {backbone!r}; give a folder with config.json, the weights and the "
            "tokenizer in Hugging Face form, or a hub id such as lmsys/vicuna-7b-v1.5."
        )
    if path.is_dir() and not (path / "config.json").is_file():
        raise InputError(
            f"backbone folder {backbone!r} has no config.json; give a folder in Hugging Face form (config.json, "
            "weights, tokenizer)."
        )


def _unloadable(what: str, backbone: str, error: Exception) -> InputError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return InputError(
        f"the {what} of backbone {backbone!r} cannot be loaded ({reason}); give a local folder in Hugging Face form "
        "or the id of a hub model that is in the local cache or can be downloaded (HF_HUB_OFFLINE forbids downloads)."
    )
