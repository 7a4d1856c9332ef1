"""Dialogues answered turn by turn: the model writes a turn, reads the true observation, and writes the next one.

What a tool would have answered is the record's own observation (GPT4Tools scores so as well), so a wrong call is not
punished twice. Every turn is tokenised on its own, as in training. Turns are written freely, as GPT4Tools has it
(`generate_dialogue`), or under constraints, as a served agent writes them (`write_dialogues`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from data_pipeline.batches.encoding import encode_text
from data_pipeline.errors import InputError
from data_pipeline.records.dialogue import TURN_STOP, ToolCall, find_files, parse_turn, read_observations
from data_pipeline.records.schema import ASSISTANT, OBSERVATION, Turn
from model.decode.free import decode_text, is_finished
from model.decode.tree_cache import CachedPath, DecodeStats, Prompt, TreeCache, decoding, token_logits
from model.decode.turn_types import PromptTooLongError, TurnRequest
from model.decode.turn_writer import TurnWriter


@dataclass
class _Dialogue:
    """One dialogue under way.

    Attributes:
        observations: what is still to be read, one behind each coming turn but the last.
        turn_start: the cached tokens before the turn that is being written.
        path: the cached tokens so far.
        produced: tokens of the turn that is being written.
        texts: finished turns.
    """

    observations: list[str]
    turn_start: CachedPath
    path: CachedPath
    produced: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)


def generate_dialogue(
    mllm: Any,
    prompts: Sequence[np.ndarray],
    gold_turns: Sequence[Sequence[Turn]],
    max_new_tokens: int,
    *,
    stats: DecodeStats | None = None,
) -> list[list[str]]:
    """Write the assistant's turns, greedily.

    A turn ends behind TURN_STOP, at the eos token, after `max_new_tokens` or where the backbone has no more positions.
    After a call the record's observation is read and the next turn written, until as many turns are there as the
    record has; a turn that is no call (an answer, or malformed) is the last.

    Args:
        mllm: a `ToolLLM`.
        prompts: int32 [P] per dialogue, the `prompt_ids` of `encode_dialogue`.
        gold_turns: of the same dialogues; only the observations and their number are used.
        max_new_tokens: limit for each turn.
        stats: filled with what it cost.

    Returns:
        per dialogue the texts of its turns, a calling turn's with TURN_STOP at the end; at least one each.

    Raises:
        InputError: max_new_tokens below 1, or a backbone that cannot decode here.
    """
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens is {max_new_tokens}; it must be at least 1 token for each turn.")
    if not prompts:
        return []
    stats = DecodeStats() if stats is None else stats
    observations = [read_observations(turns) for turns in gold_turns]
    with decoding(mllm):
        cache = TreeCache(mllm, [Prompt(ids) for ids in prompts], np.empty(0, dtype=np.int32), stats)
        hidden = cache.hidden
        dialogues = [_Dialogue(texts, path, path) for texts, path in zip(observations, cache.paths, strict=True)]
        active = list(dialogues)  # row i of the cache belongs to active[i]
        while active:
            tokens = token_logits(mllm, hidden).argmax(-1).tolist()
            stats.decisions += len(tokens)
            blocks = [
                _advance(mllm, dialogue, token, max_new_tokens) for dialogue, token in zip(active, tokens, strict=True)
            ]
            kept = [row for row, block in enumerate(blocks) if block is not None]
            if len(kept) < len(active):
                active = [active[row] for row in kept]
                if not active:
                    break
                cache.select_rows(kept)
            paths, hidden = cache.extend([[block] for block in blocks if block is not None])
            for dialogue, (path,) in zip(active, paths, strict=True):
                dialogue.path = path
                if not dialogue.produced:
                    dialogue.turn_start = path
    return [dialogue.texts for dialogue in dialogues]


def _advance(mllm: Any, dialogue: _Dialogue, token: int, max_new_tokens: int) -> tuple[CachedPath, np.ndarray] | None:
    """Take the next token; returns what the model reads next as a block for the cache, None at the dialogue's end."""
    tokenizer = mllm.tokenizer
    dialogue.produced.append(token)
    is_cut = len(dialogue.produced) >= max_new_tokens or dialogue.path.length >= mllm.max_positions
    if not is_cut and not is_finished(tokenizer, dialogue.produced, TURN_STOP):
        return dialogue.path, np.array([token])
    words, stop, _ = decode_text(tokenizer, dialogue.produced).partition(TURN_STOP)
    dialogue.texts.append(words + stop)
    dialogue.produced = []
    if not dialogue.observations or not isinstance(parse_turn(words + stop), ToolCall):
        return None
    # The turn is read again as training tokenises it: the model may have spelt it, or gone beyond its end, otherwise.
    written = encode_text(tokenizer, words + stop)
    block = np.concatenate([written, encode_text(tokenizer, dialogue.observations.pop(0))])
    has_room = dialogue.turn_start.length + len(block) <= mllm.max_positions
    return (dialogue.turn_start, block) if has_room else None


def write_dialogues(
    writer: TurnWriter,
    requests: Sequence[TurnRequest],
    gold_turns: Sequence[Sequence[Turn]],
    cards: Sequence[np.ndarray | None],
) -> list[list[str]]:
    """Write the assistant's turns under constraints; after a call the record's observation is read, as above.

    Args:
        writer: of the model.
        requests: each dialogue's first turn.
        gold_turns: of the same dialogues; only the observations and their number are used.
        cards: per dialogue float32 [tools, D] or None; see `TurnWriter.encode`.

    Returns:
        per dialogue the texts of its turns, at least one each; "" for one that there is no room for.
    """
    texts: list[list[str]] = [[] for _ in requests]
    observations = [read_observations(turns) for turns in gold_turns]
    waiting = dict(enumerate(requests))
    while waiting:
        encoded = {}
        for i, request in waiting.items():
            try:
                encoded[i] = writer.encode(request, cards[i])
            except PromptTooLongError:
                texts[i].append("")
        written = dict(zip(encoded, writer.write(list(encoded.values())), strict=True))
        waiting = {}
        for i, turn in written.items():
            request = encoded[i].request
            texts[i].append(turn.text)
            if not observations[i] or not isinstance(parse_turn(turn.text), ToolCall):
                continue
            observation = observations[i].pop(0)
            turns = (*request.turns, Turn(ASSISTANT, turn.text), Turn(OBSERVATION, observation))
            files = dict.fromkeys((*find_files(observation), *request.files))
            waiting[i] = replace(request, turns=turns, files=tuple(files))
    return texts
