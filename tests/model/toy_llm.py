"""Random language models with their tokenizers, catalogues with names like the hub's, and prompts for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

from data_pipeline.batches.encoding import encode_question
from data_pipeline.records.prompts import render_target
from model.decode.tools import Prompt
from model.llm.config import ModelConfig
from model.llm.tool_llm import ToolLLM

EMBED_DIM = 6
QUESTIONS = ("improve this picture", "what is this sound? ", " translate the line into French\n" * 3, "hi")


def train_tokenizer(names: Sequence[str]) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1200,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([*map(render_target, names), *QUESTIONS], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="</s>")


def build_mllm(
    tokenizer: PreTrainedTokenizerFast, sharpness: float = 8.0, adapter: dict[str, Any] | None = None, opt: bool = False
) -> ToolLLM:
    """A random LLM with a random adapter; `sharpness` scales its head, so that some tools are much likelier."""
    torch.manual_seed(0)
    shape = {"vocab_size": len(tokenizer), "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    causal_lm: Any
    if opt:
        causal_lm = OPTForCausalLM(OPTConfig(**shape, ffn_dim=96, word_embed_proj_dim=48, tie_word_embeddings=False))
    else:
        causal_lm = LlamaForCausalLM(LlamaConfig(**shape, intermediate_size=96, num_key_value_heads=2))
    for name, parameter in causal_lm.named_parameters():
        if "norm" not in name:
            nn.init.normal_(parameter, std=0.15)
    with torch.no_grad():
        causal_lm.lm_head.weight.mul_(sharpness / 0.15 / 48**0.5)
    arguments = {"target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.5, **(adapter or {})}
    llm = get_peft_model(causal_lm, LoraConfig(r=4, **arguments))
    with torch.no_grad():
        for parameter in llm.parameters():
            if parameter.requires_grad:  # off their start, where adapters change nothing
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return ToolLLM(llm, nn.Linear(EMBED_DIM, 48), tokenizer, ModelConfig(encoder_dim=EMBED_DIM), "sdpa")


def make_prompts(tokenizer: PreTrainedTokenizerFast) -> list[Prompt]:
    """Four questions of different lengths; the second and third with a medium."""
    rng = np.random.default_rng(1)
    prompts = []
    for i, question in enumerate(QUESTIONS):
        media = rng.normal(size=EMBED_DIM).astype(np.float32) if i in (1, 2) else None
        prompts.append(Prompt(encode_question(tokenizer, question, media is not None, ()).prompt_ids, media))
    return prompts


def hub_like_names(n: int) -> list[str]:
    """Distinct names with the owner/task-architecture-size shape of hub ids, `unknown` among them."""
    rng = np.random.default_rng(0)
    owners = ["facebook", "google", "microsoft", "laion", "openai", "t5lab", "Helsinki-NLP", "zoo"]
    stems = ["bert", "t5", "vit", "wav2vec2", "resnet", "detr", "opus-mt", "whisper", "blip", "clap"]
    tails = ["", "-base", "-large", "-small", "-base-finetuned", "-en", "-fr-en", "-v2", "-384"]
    names = ["unknown"]
    while len(names) < n:
        parts = rng.choice(owners), rng.choice(stems), rng.integers(1, 60), rng.choice(tails)
        name = "{}/{}{}{}".format(*parts) if rng.random() < 0.85 else "{1}{2}{3}".format(*parts)
        if name not in names:
            names.append(name)
    return names
