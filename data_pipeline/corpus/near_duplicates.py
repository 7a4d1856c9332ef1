"""Questions that say almost the same about the same medium, found by MinHash and checked exactly.

Words are compared as splitting and joining compare them (`words_key`), without punctuation, by the pieces of five
characters that they share; so typing errors and languages without spaces are seen as well. Candidates come from
locality-sensitive hashing (Broder 1997; Indyk and Motwani 1998); of each the similarity is then computed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import cast
from zlib import crc32

from datasketch import MinHash, MinHashLSH

from data_pipeline.errors import InputError
from data_pipeline.records.dialogue import parse_dialogue_prompt
from data_pipeline.records.keys import media_keys
from data_pipeline.records.schema import SPLITS, ToolRecord
from data_pipeline.records.text import words_key

NEAR = 0.8  # Jaccard similarity of the pieces from which two questions count as near
PIECE_CHARS = 5
# 21 bands of 6 hashes: a pair of similarity 0.8 is a candidate with probability 1 - (1 - 0.8^6)^21 = 0.998, one of 0.5
# with 0.28
_BANDS, _ROWS = 21, 6
_MAX_CANDIDATES = 500  # of one question: a corpus that is one template over and over would be compared for ever

_WORDS = re.compile(r"\w+")


@dataclass(frozen=True)
class NearPair:
    """A question, one that came before it and says almost the same, and how similar they are (0 to 1).

    Those that differ in punctuation alone have similarity 1; the same words are no near pair, but the same question.
    """

    record: ToolRecord
    earlier: ToolRecord
    similarity: float
    is_contradiction: bool  # no tool is right for both


@dataclass(frozen=True)
class _Read:
    """A record, its words as they are compared, and their pieces."""

    record: ToolRecord
    words: str
    pieces: frozenset[int]


def find_near_duplicates(by_split: Mapping[str, Sequence[ToolRecord]]) -> Iterator[NearPair]:
    """For every question one near pair with each of: its own split, and the splits before that (train, val, test).

    Where some of a question's pairs are contradictions, one of these is given beside the first. Pictures, sounds and
    videos are the same by content, or by path where that is not known.

    Args:
        by_split: the records of each of `SPLITS`.
    """
    indexes: dict[str, MinHashLSH] = {}
    earlier: list[_Read] = []
    for split in SPLITS:
        indexes[split] = MinHashLSH(num_perm=_BANDS * _ROWS, params=(_BANDS, _ROWS))
        read = [_Read(record, words_key(record.instruction), list_pieces(record)) for record in by_split[split]]
        for one, minhash in zip(read, _hash_all(read), strict=True):
            for index in indexes.values():
                candidates = islice(index.query(minhash), _MAX_CANDIDATES)
                yield from _choose(one, (earlier[cast(int, number)] for number in candidates))
            indexes[split].insert(len(earlier), minhash)
            earlier.append(one)


def list_pieces(record: ToolRecord) -> frozenset[int]:
    """CRC-32 of each piece of a question's words; those about different media have none in common."""
    text = " ".join(_WORDS.findall(words_key(_read_words(record))))
    medium = media_keys(record)[:1] or ("dialogue" if record.is_dialogue else "text",)
    salt = crc32(medium[0].encode())
    last = max(1, len(text) - PIECE_CHARS + 1)
    return frozenset(crc32(text[start : start + PIECE_CHARS].encode(), salt) for start in range(last))


def _read_words(record: ToolRecord) -> str:
    """What the user says, and of a dialogue the conversation before that, without the tools that the prompt offers."""
    if not record.is_dialogue:
        return record.instruction
    try:
        prompt = parse_dialogue_prompt(record.instruction)
    except InputError:  # other people's prompts
        return record.instruction
    said = [text for pair in (*prompt.files.items(), *prompt.exchanges) for text in pair]
    return " ".join([*said, prompt.new_input])


def _hash_all(read: Sequence[_Read]) -> list[MinHash]:
    # the pieces are 32-bit hashes already; a fixed seed, so that a corpus always gives the same pairs
    return MinHash.bulk([one.pieces for one in read], num_perm=_BANDS * _ROWS, seed=1, hashfunc=int)


def _choose(one: _Read, candidates: Iterator[_Read]) -> Iterator[NearPair]:
    """The first near pair, and the first that is a contradiction."""
    is_found = False
    for other in candidates:
        is_contradiction = set(one.record.valid_tool_ids).isdisjoint(other.record.valid_tool_ids)
        if other.words == one.words or (is_found and not is_contradiction):
            continue
        n_common = len(one.pieces & other.pieces)
        similarity = n_common / (len(one.pieces) + len(other.pieces) - n_common)
        if similarity >= NEAR:
            yield NearPair(one.record, other.record, similarity, is_contradiction)
            is_found = True
            if is_contradiction:
                return
