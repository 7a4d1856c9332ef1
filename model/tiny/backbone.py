"""A small Llama with random weights and a tokenizer trained on the corpus, in Hugging Face form.

It lets the whole path run on two CPU cores without a download, through the very code that loads Vicuna. It knows
nothing, so the demo trains its embedding and head beside the adapter.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from data_pipeline import storage
from data_pipeline.errors import InputError
from data_pipeline.locations import locate_local

FINGERPRINT_FILE = "tiny_backbone.json"
SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<pad>")
_RECIPE = 1  # raise it when the same arguments would give another backbone


def build_tiny_backbone(
    out_dir: Path | str,
    texts: Iterable[str],
    seed: int = 0,
    vocab_size: int = 2048,
    hidden_size: int = 256,
    n_layers: int = 4,
    n_heads: int = 4,
    intermediate_size: int = 768,
    max_positions: int = 4096,
) -> Path:
    """Train the tokenizer, draw the weights and save both; nothing is done if `out_dir` already holds the same.

    Args:
        out_dir: folder to write; replaced whole if it holds another tiny backbone.
        texts: what the tokenizer learns from: prompts and answers of the corpus.
        seed: of the weights.
        vocab_size: largest size of the vocabulary, special tokens included.
        hidden_size: D.
        n_layers: decoder layers.
        n_heads: attention heads.
        intermediate_size: of the feed-forward layers.
        max_positions: longest sequence.

    Returns:
        `out_dir`.

    Raises:
        InputError: if `out_dir` holds anything but a tiny backbone.
    """
    out_dir = locate_local(out_dir).absolute()
    texts = list(texts)
    shape: dict[str, Any] = {
        "hidden_size": hidden_size,
        "num_hidden_layers": n_layers,
        "num_attention_heads": n_heads,
        "intermediate_size": intermediate_size,
        "max_position_embeddings": max_positions,
    }
    fingerprint = _compute_fingerprint(texts, {"recipe": _RECIPE, "seed": seed, "vocab_size": vocab_size, **shape})
    found = _read_fingerprint(storage.open_folder(out_dir))
    if found == fingerprint:
        return out_dir
    if found is None and not storage.is_empty(out_dir):
        raise InputError(f"{out_dir} holds something else than a tiny backbone; give an empty or a new folder.")

    # a builder beside us that was faster with the same one wins: its folder may be in use
    with storage.replacing_folder(out_dir, unless=lambda: _read_fingerprint(out_dir) == fingerprint) as partial:
        tokenizer = build_tokenizer(texts, vocab_size)
        tokenizer.save_pretrained(partial)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            bos_token_id=SPECIAL_TOKENS.index("<s>"),
            eos_token_id=SPECIAL_TOKENS.index("</s>"),
            pad_token_id=SPECIAL_TOKENS.index("<pad>"),
            tie_word_embeddings=False,
            **shape,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            llm = LlamaForCausalLM(config)
        llm.save_pretrained(partial)
        storage.write_file(partial / FINGERPRINT_FILE, json.dumps({"fingerprint": fingerprint}) + "\n")
    return out_dir


def build_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer: nothing is out of its vocabulary, and decoding gives the text back."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        texts, vocab_size=vocab_size, min_frequency=2, special_tokens=list(SPECIAL_TOKENS), show_progress=False
    )
    unk, bos, eos, pad = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer,
        unk_token=unk,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        clean_up_tokenization_spaces=False,
    )


def _compute_fingerprint(texts: list[str], arguments: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(arguments, sort_keys=True).encode())
    for text in texts:
        data = text.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def _read_fingerprint(folder: Path) -> str | None:
    try:
        return json.loads((folder / FINGERPRINT_FILE).read_text(encoding="utf-8"))["fingerprint"]
    except (FileNotFoundError, json.JSONDecodeError, KeyError):
        return None
