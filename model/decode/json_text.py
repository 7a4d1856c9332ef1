"""Text in JSON: each token is the likeliest of those with which an answer can still fit a schema.

Which these are, llguidance says (https://github.com/guidance-ai/llguidance); what a schema leaves no choice in is read
in one pass.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer

from data_pipeline.errors import InputError
from model.decode.kept_prefixes import KeptPrefixes, read_behind
from model.decode.tree_cache import decoding, token_logits

_CUT = "\ufffd"  # what bytes that are no whole character are decoded to
_MIN_TOKENS = 16  # of an answer: so much room must a prompt leave
_MAX_JOINED_PATTERNS = (
    8  # of a schema: what llguidance does with each that must fit the same text doubles with the next
)
_OWN_WAYS = ("pattern", "properties", "items", "prefixItems", "additionalProperties")  # to say what a value holds
_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}  # one way to write a value


@dataclass(frozen=True)
class WrittenJson:
    """An answer.

    Attributes:
        text: as it was written; JSON that fits the schema where it is whole.
        is_whole: whether it came to its end before its tokens were used up.
        prompt_tokens, cached_tokens: that were read, and how many of these had been read before.
        completion_tokens: that were written.
    """

    text: str
    is_whole: bool
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


def open_guide(tokenizer: Any) -> LLTokenizer:
    """What tells the tokens of a backbone's tokenizer apart; it takes a second.

    Raises:
        InputError: it is no fast tokenizer, or has no end token.
    """
    if tokenizer.eos_token_id is None or not getattr(tokenizer, "is_fast", False):
        raise InputError(
            "the backbone's tokenizer has no end token (eos), or is no fast one of Hugging Face's, so that no JSON can "
            "be written with it; ask for words."
        )
    return from_tokenizer(tokenizer)


def build_grammar(schema: Mapping[str, Any]) -> str:
    """A schema as llguidance takes it.

    Raises:
        InputError: it is none, or uses a keyword that is not supported, or joins more patterns than can be worked out.
    """
    if _count_joined_patterns(schema) > _MAX_JOINED_PATTERNS:
        raise _unwritable(f"it joins more than {_MAX_JOINED_PATTERNS} patterns by allOf or the like; simplify it")
    try:
        grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=_SPACING)  # pyright: ignore[reportArgumentType]
    except ValueError as error:  # it nests too deep
        raise _unwritable(str(error)) from None
    if fault := LLMatcher.validate_grammar(grammar):
        raise _unwritable(fault)
    return grammar


def _count_joined_patterns(schema: Mapping[str, Any]) -> int:
    """How many patterns a schema has, if it may want a text to fit several of them; else 0."""
    n_patterns, joins, waiting = 0, False, list[Any]([schema])
    while waiting:
        part = waiting.pop()
        if isinstance(part, list):
            waiting += part
        elif isinstance(part, Mapping):
            n_patterns += isinstance(part.get("pattern"), str)
            parts = part.get("allOf")
            n_ways = any(key in part for key in _OWN_WAYS) + sum(key in part for key in ("$ref", "anyOf", "oneOf"))
            joins |= n_ways + (len(parts) if isinstance(parts, list) else 0) > 1
            waiting += part.values()
    return n_patterns if joins else 0


def write_json(
    mllm: Any,
    guide: LLTokenizer,
    prompt_ids: np.ndarray,
    grammar: str,
    max_tokens: int,
    kept: KeptPrefixes,
    owner: Hashable,
) -> Generator[str, None, WrittenJson]:
    """Write one answer, a pass of the model at each step.

    Args:
        mllm: a `ToolLLM`.
        guide: of `open_guide`, for its tokenizer.
        prompt_ids: int32 [P], without a medium.
        grammar: of `build_grammar`.
        max_tokens: of the answer.
        kept, owner: as of `read_behind`.

    Yields:
        the answer so far; a character of which only some bytes are written is left out.

    Raises:
        InputError: the prompt leaves no room, or the schema is too complex.
    """
    room = mllm.max_positions - len(prompt_ids)
    if room < _MIN_TOKENS:
        raise InputError("the words are too long for this model to write JSON behind them; send fewer.")
    max_tokens, matcher = min(max_tokens, room), LLMatcher(guide, grammar)
    _check(matcher)
    cache, path, hidden, n_cached = read_behind(mllm, prompt_ids, kept, owner)
    tokens: list[int] = []
    while not matcher.is_stopped() and len(tokens) < max_tokens:
        new = matcher.compute_ff_tokens() or [_likeliest(mllm, hidden, matcher, guide.vocab_size)]
        new = new[: max_tokens - len(tokens)]
        matcher.consume_tokens(new)
        _check(matcher)
        if new == [guide.eos_token]:
            break
        tokens += new
        yield guide.decode_str(tokens).rstrip(_CUT)
        with decoding(mllm):
            ((path,),), hidden = cache.extend([[(path, np.array(new, dtype=np.int32))]])
    return WrittenJson(
        text=guide.decode_str(tokens),
        is_whole=matcher.is_accepting(),
        prompt_tokens=len(prompt_ids),
        cached_tokens=n_cached,
        completion_tokens=len(tokens),
    )


def _check(matcher: LLMatcher) -> None:
    """A matcher raises nothing: where a schema is too complex it stops, as if it were at its end."""
    if fault := matcher.get_error():
        raise _unwritable(fault)


def _unwritable(fault: str) -> InputError:
    return InputError(f"no JSON can be written by this schema: {' '.join(fault.split())[:200]}")


def _likeliest(mllm: Any, hidden: torch.Tensor, matcher: LLMatcher, n_tokens: int) -> int:
    """Of the tokens that are allowed next."""
    bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
    allowed = np.unpackbits(bits, bitorder="little")[:n_tokens].astype(bool)  # [tokens of the tokenizer]
    logits = token_logits(mllm, hidden)[0].cpu().numpy()[:n_tokens]  # the embedding may have more rows
    return int(np.where(allowed[: len(logits)], logits, -np.inf).argmax())
