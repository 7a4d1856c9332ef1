"""Tokenizers of the two kinds that backbones bring, trained in a moment, for the tests of whatever handles tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from model.tiny.backbone import build_tokenizer

KINDS = ("byte-level", "llama")


def train_tokenizer(kind: str, texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    if kind == "byte-level":
        return build_tokenizer(texts, vocab_size)
    return train_llama_tokenizer(texts, vocab_size)


def train_llama_tokenizer(texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """As Llama's own: every text gets a "▁" in front, blanks are "▁", whatever else is unknown falls into bytes."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained.pre_tokenizer = pre_tokenizers.Sequence(  # SentencePiece learns no piece across a blank, nor line breaks
        [pre_tokenizers.Split("\n", "removed"), pre_tokenizers.Split(Regex("▁"), "merged_with_next")]
    )
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    n_learnt = max(1, vocab_size - len(specials))
    texts = [re.sub("[<>]", " ", text) for text in texts]  # SentencePiece learns no piece that is a special token
    trained.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=n_learnt, show_progress=False))
    learnt = json.loads(trained.to_str())["model"]
    pieces = [*specials, *sorted(learnt["vocab"], key=learnt["vocab"].get)]
    core = Tokenizer(
        models.BPE(
            vocab={piece: number for number, piece in enumerate(pieces)},
            merges=[(first, second) for first, second in learnt["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    core.normalizer = trained.normalizer
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )


def put_llama_tokenizer(backbone: Path, texts: Sequence[str], vocab_size: int) -> Path:
    """Give a tiny backbone a tokenizer as Llama's, and a new random Llama of its shape for it."""
    tokenizer = train_llama_tokenizer(texts, vocab_size)
    config = LlamaConfig.from_pretrained(backbone)
    config.vocab_size, config.bos_token_id, config.eos_token_id, config.pad_token_id = len(tokenizer), 1, 2, None
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(backbone)
    tokenizer.save_pretrained(backbone)
    return backbone
