"""Questions and answers as token ids, in the pieces in which MLLM-Tool's training code tokenises them.

Reference: MLLM-Tool/MLLM-Tool, `code/model/anyToImageVideoAudio.py`: the bos token once, every piece of the prompt
and the answer tokenised on its own without special tokens, loss on the answer alone. One deviation: where question and
answer are too long together, the reference cuts the end of the sequence and so the answer; here the question is cut
and the answer is whole. Dialogues (GPT4Tools' form) are tokenised turn by turn, so that what the model reads while it
answers turn by turn is what it read in training.

Text is only ever text: where a user's words, a tool's name or an observation spell a special token ("</s>"), they are
tokenised letter by letter, in training, serving and tries alike (`encode_texts`). Special tokens stand where this
module puts them and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from data_pipeline.batches.answer_tree import AnswerTree, build_answer_tree
from data_pipeline.batches.choices import AnswerChoices
from data_pipeline.errors import InputError
from data_pipeline.records.dialogue import check_turn_order
from data_pipeline.records.prompts import render_prompt, render_target
from data_pipeline.records.schema import ASSISTANT, Turn

MEDIA_SLOT_ID = -200  # marks the one position that the projected media vector takes; no vocabulary has it
MAX_TARGET_TOKENS = 512  # MLLM-Tool's `max_tgt_len`

_MARK = "\x00"  # stands for the instruction while a prompt is taken apart


@dataclass(frozen=True, eq=False)
class EncodedQuestion:
    """One question and all its right answers as token ids.

    Attributes:
        prompt_ids: int32 [P]: bos (where the tokenizer has one), prefix, MEDIA_SLOT_ID where a medium goes, the
            question.
        answers: one int32 [A_i] per right tool, end marker included; of a dialogue, all its turns as one.
        bears_loss: one bool [A_i] per answer: which of its tokens are to be predicted; None = all of them.
        choices: what each answer decides under the trie of the answers that the question may have; None where the loss
            needs no such thing.
    """

    prompt_ids: np.ndarray
    answers: list[np.ndarray]
    bears_loss: list[np.ndarray] | None = None
    choices: list[AnswerChoices] | None = None

    def __post_init__(self) -> None:
        masks = self.answers if self.bears_loss is None else self.bears_loss
        assert [len(mask) for mask in masks] == [len(answer) for answer in self.answers]

    @property
    def has_media(self) -> bool:
        return bool((self.prompt_ids == MEDIA_SLOT_ID).any())

    @property
    def n_loss_tokens(self) -> list[int]:
        """Loss-bearing tokens of each answer."""
        if self.bears_loss is None:
            return [len(answer) for answer in self.answers]
        return [int(mask.sum()) for mask in self.bears_loss]

    @cached_property
    def tree(self) -> AnswerTree:
        """All answers behind one copy of the prompt."""
        return build_answer_tree(self.prompt_ids, self.answers, self.bears_loss)


def encode_question(
    tokenizer: Any,
    instruction: str,
    has_media: bool,
    tool_ids: Sequence[str],
    max_target_tokens: int = MAX_TARGET_TOKENS,
    reserve_tokens: int = 0,
) -> EncodedQuestion:
    """Tokenise a question and its answers.

    Args:
        tokenizer: as in `encode_texts`, with a `bos_token_id`; one without a bos token gives sequences without it.
        instruction: the user's words, unstripped.
        has_media: whether a media slot is spliced in.
        tool_ids: every right tool; () when serving.
        max_target_tokens: bound on what follows the prefix and the media slot: question and longest answer together.
        reserve_tokens: room for an answer that the question must leave even if its own answers are shorter. Training
            and serving cut alike if both give the longest answer of the catalogue here (`longest_answer`).

    Raises:
        InputError: if not even an empty question fits beside the answer.
    """
    answers = encode_texts(tokenizer, [render_target(tool_id) for tool_id in tool_ids])
    room = max_target_tokens - max([reserve_tokens, *(len(answer) for answer in answers)])
    prefix, question_ids = _encode_prompt(tokenizer, instruction, has_media)
    if len(question_ids) > room:
        question_ids = _cut_question(tokenizer, instruction, has_media, room)
    return EncodedQuestion(np.concatenate([encode_bos(tokenizer), *prefix, question_ids]), answers)


def encode_dialogue(tokenizer: Any, record_prompt: str, turns: Sequence[Turn]) -> EncodedQuestion:
    """Tokenise a dialogue: the assistant's words and the end token bear loss, the prompt and the observations do not.

    Args:
        tokenizer: as in `encode_question`, with an `eos_token_id`.
        record_prompt: everything that the model reads before its first turn.
        turns: assistant and observation in turn, from assistant to assistant; () when serving.

    Returns:
        one answer: all turns, each tokenised on its own, and the end token; no answer without turns.

    Raises:
        InputError: the turns do not alternate, or the tokenizer has no end token.
    """
    prompt_ids = encode_whole_prompt(tokenizer, record_prompt)
    if not turns:
        return EncodedQuestion(prompt_ids, [])
    check_turn_order(turns)
    if tokenizer.eos_token_id is None:
        raise InputError("the tokenizer has no end token (eos), which ends a dialogue; take a backbone that has one.")
    pieces = encode_texts(tokenizer, [turn.text for turn in turns])
    pieces[-1] = np.append(pieces[-1], np.int32(tokenizer.eos_token_id))
    bears_loss = [np.full(len(piece), turn.role == ASSISTANT) for turn, piece in zip(turns, pieces, strict=True)]
    return EncodedQuestion(prompt_ids, [np.concatenate(pieces)], [np.concatenate(bears_loss)])


def encode_texts(tokenizer: Any, texts: Iterable[str]) -> list[np.ndarray]:
    """Tokenise texts, each on its own: the one way from text to tokens.

    No special token is added, and what spells one is split into ordinary tokens, so that nobody's words can end an
    answer. Tokens that were added to a vocabulary as words of it (`special=False`) stay whole: they are text, and
    decode to it.

    Args:
        tokenizer: a Hugging Face tokenizer, or any callable that takes a list of texts and these two settings and gives
            a mapping with `input_ids`.
        texts: an empty one has no tokens.

    Returns:
        int32 [A_i] per text.
    """
    texts = list(texts)
    filled = [text for text in texts if text]  # some tokenizers put something in front of nothing
    if not filled:
        return [np.zeros(0, dtype=np.int32) for _ in texts]
    rows = iter(tokenizer(filled, add_special_tokens=False, split_special_tokens=True)["input_ids"])
    return [np.array(next(rows) if text else [], dtype=np.int32) for text in texts]


def encode_bos(tokenizer: Any) -> np.ndarray:
    """What every prompt and card begins with: int32 [1], or [0] where the tokenizer has no bos token."""
    return np.array([] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id], dtype=np.int32)


def encode_text(tokenizer: Any, text: str) -> np.ndarray:
    """One text of `encode_texts`: int32 [A]. A turn of a dialogue is one."""
    return encode_texts(tokenizer, [text])[0]


def encode_whole_prompt(tokenizer: Any, text: str) -> np.ndarray:
    """A prompt that is one text, without a medium: int32 [P], behind the bos token."""
    return np.concatenate([encode_bos(tokenizer), encode_text(tokenizer, text)])


def longest_answer(tokenizer: Any, tool_ids: Iterable[str]) -> int:
    """Number of tokens of the longest answer that names one of the tools; 0 without tools."""
    return max(map(len, encode_texts(tokenizer, map(render_target, tool_ids))), default=0)


def _encode_prompt(tokenizer: Any, instruction: str, has_media: bool) -> tuple[list[np.ndarray], np.ndarray]:
    """The prompt after bos, as (pieces before the question, question): only the last piece holds the user's words."""
    slot = np.array([MEDIA_SLOT_ID], dtype=np.int32)
    pieces = render_prompt(instruction, has_media)
    *prefix, question = [slot if piece is None else encode_text(tokenizer, piece) for piece in pieces]
    return prefix, question


def _cut_question(tokenizer: Any, instruction: str, has_media: bool, room: int) -> np.ndarray:
    """The question piece in at most `room` tokens: the end of the user's words goes, what frames them stays."""
    piece = render_prompt(_MARK, has_media)[-1]
    assert piece is not None
    opening, closing = piece.split(_MARK)
    closing_ids = encode_text(tokenizer, closing)
    kept = room - len(closing_ids)
    if kept <= len(encode_text(tokenizer, opening)):
        raise InputError(
            f"max_target_tokens leaves {room} tokens for a question beside its longest answer, too few for any word "
            "of it; raise max_target_tokens or shorten the tool's name."
        )
    return np.concatenate([encode_text(tokenizer, opening + instruction)[:kept], closing_ids])
