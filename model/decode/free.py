"""Decoding without the catalogue, greedy or sampled: what a model says of its own accord."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_pipeline.errors import InputError
from model.decode.tree_cache import DecodeStats, Prompt, TreeCache, decoding, token_logits

ANSWER_STOP = "###"


def generate_free(
    mllm: Any,
    prompts: Sequence[Prompt],
    max_new_tokens: int = 64,
    n_samples: int = 1,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    *,
    stats: DecodeStats | None = None,
) -> list[list[str]]:
    """Decode without the catalogue, as the paper does (there: 10 samples at temperature 0.4, top_p 1).

    A row ends with `###` in its text, the eos token, or `max_new_tokens`. What a prompt's samples are depends on the
    seed, the prompt and its medium alone, and not on its neighbours in the batch (up to rounding).

    Args:
        mllm: a `ToolLLM`.
        prompts: the batch; each runs once, whatever `n_samples` is.
        max_new_tokens: limit for each answer.
        n_samples: answers per prompt; more than one needs a temperature above 0.
        temperature: 0 takes the likeliest token.
        top_p: sample from the smallest set of tokens that holds this probability.
        seed: of the sampling.
        stats: filled with what it cost.

    Returns:
        [prompt][sample] the decoded text up to and excluding `###`, line breaks kept.

    Raises:
        InputError: an argument is out of its range.
    """
    if max_new_tokens < 1 or n_samples < 1 or temperature < 0 or not 0 < top_p <= 1:
        raise InputError(
            f"max_new_tokens={max_new_tokens}, n_samples={n_samples}, temperature={temperature}, top_p={top_p}: the "
            "first two must be at least 1, temperature at least 0, top_p above 0 and at most 1."
        )
    if n_samples > 1 and temperature == 0:
        raise InputError(f"{n_samples} samples at temperature 0 are all the same; set a temperature, such as 0.4.")
    if not prompts:
        return []
    stats = DecodeStats() if stats is None else stats
    draws = np.concatenate([_draws(prompt, seed, n_samples, max_new_tokens) for prompt in prompts])
    produced: list[list[int]] = [[] for _ in draws]
    active = list(range(len(draws)))  # row i of the cache belongs to sample active[i]
    with decoding(mllm):
        cache = TreeCache(mllm, prompts, np.empty(0, dtype=np.int32), stats)
        origin = [sample // n_samples for sample in active]
        paths, hidden = [cache.paths[row] for row in origin], cache.hidden[origin]
        if n_samples > 1:
            cache.select_rows(origin)
        for step in range(max_new_tokens):
            tokens = _pick_tokens(token_logits(mllm, hidden), temperature, top_p, draws[active, step]).tolist()
            stats.decisions += len(tokens)
            for sample, token in zip(active, tokens, strict=True):
                produced[sample].append(token)
            kept = [
                i for i, sample in enumerate(active) if not is_finished(mllm.tokenizer, produced[sample], ANSWER_STOP)
            ]
            if not kept or step == max_new_tokens - 1:
                break
            if len(kept) < len(active):
                cache.select_rows(kept)
                active, paths = [active[i] for i in kept], [paths[i] for i in kept]
            blocks = [[(path, np.array(produced[sample][-1:]))] for path, sample in zip(paths, active, strict=True)]
            extended, hidden = cache.extend(blocks)
            paths = [row[0] for row in extended]
    texts = [decode_text(mllm.tokenizer, ids).split(ANSWER_STOP)[0] for ids in produced]
    return [texts[i : i + n_samples] for i in range(0, len(texts), n_samples)]


def _draws(prompt: Prompt, seed: int, n_samples: int, n_tokens: int) -> np.ndarray:
    """Uniform numbers float64 [n_samples, n_tokens] that belong to this prompt wherever it is decoded."""
    content = np.asarray(prompt.prompt_ids, dtype=np.int32).tobytes()
    if prompt.media is not None:
        content += np.asarray(prompt.media, dtype=np.float32).tobytes()
    return np.random.default_rng([seed, zlib.crc32(content)]).random((n_samples, n_tokens))


def _pick_tokens(logits: Tensor, temperature: float, top_p: float, uniform: np.ndarray) -> Tensor:
    """One token per row of logits [N, V]: the likeliest, or by inverting the cumulative distribution at `uniform`."""
    if temperature == 0:
        return logits.argmax(-1)
    probabilities, order = (logits / temperature).softmax(-1).sort(dim=-1, descending=True, stable=True)
    cumulative = probabilities.cumsum(-1)
    n_kept = (cumulative - probabilities < top_p).sum(-1, keepdim=True)  # [N, 1], the nucleus of Holtzman et al. 2020
    mass = cumulative.gather(1, n_kept - 1)
    target = torch.from_numpy(uniform).to(logits)[:, None] * mass
    index = torch.minimum((cumulative <= target).sum(-1, keepdim=True), n_kept - 1)
    return order.gather(1, index)[:, 0]


def is_finished(tokenizer: Any, ids: list[int], stop: str) -> bool:
    """Whether a text just ended: with the eos token, or with the ASCII string `stop` in the last tokens.

    A token holds at least one byte, so as many tokens as `stop` has characters hold it; some more, since it may end
    inside a token. Where these begin inside a character, a decoder may lose the bytes behind it too, a line break among
    them: then all tokens are decoded.
    """
    if ids[-1] == tokenizer.eos_token_id:
        return True
    text = decode_text(tokenizer, ids[-(len(stop) + 5) :])
    return stop in text or ("\ufffd" in text and stop in decode_text(tokenizer, ids))


def decode_text(tokenizer: Any, ids: list[int]) -> str:
    """The text of generated tokens, special ones left out, white space as it was generated."""
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
