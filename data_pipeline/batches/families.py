"""Questions whose prompts begin alike: a family reads what it shares once in a pack.

Dialogues that offer the same tools share hundreds of tokens before the first word that differs. Prompts are compared by
the hashes of whole blocks of tokens, so that planning needs no tokens; the pack itself compares the tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from data_pipeline.batches.encoding import MEDIA_SLOT_ID

BLOCK_TOKENS = 32
_COUNTED_MEMBERS = 8  # of a family: more are seldom in one pack, so a large family is not preferred to a deep one


def hash_blocks(prompt_ids: np.ndarray) -> np.ndarray:
    """One hash for each whole block of a prompt, each of everything up to its end.

    Args:
        prompt_ids: int32 [P].

    Returns:
        int64 [blocks]; up to the first media slot, which stands for another vector in each question, and without the
        last token, after which the answer begins.
    """
    slots = np.flatnonzero(prompt_ids == MEDIA_SLOT_ID)
    end = min(len(prompt_ids) - 1, int(slots[0]) if len(slots) else len(prompt_ids))
    digest = hashlib.blake2b(digest_size=8)
    hashes = []
    for start in range(0, end - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        digest.update(np.ascontiguousarray(prompt_ids[start : start + BLOCK_TOKENS], dtype="<i4").tobytes())
        hashes.append(int.from_bytes(digest.digest(), "little", signed=True))
    return np.array(hashes, dtype=np.int64)


def find_families(hashes: np.ndarray, n_blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Put each question into the family that saves it most: how much its prompt shares, with how many others.

    A family shares half of each prompt at the least: less is not worth that its members meet in one step.

    Args:
        hashes: int64 [B]; of N prompts, as `hash_blocks` gives them, behind one another.
        n_blocks: int [N]; how many are each prompt's.

    Returns:
        int64 [N], each question's family, named by its first member: alone, its own number; and int64 [N], the tokens
        that the prompts of its family have in common at the least, 0 for one alone.
    """
    family = np.arange(len(n_blocks), dtype=np.int64)
    shared = np.zeros(len(n_blocks), dtype=np.int64)
    if not len(hashes):
        return family, shared
    known, counts = np.unique(hashes, return_counts=True)
    owner = np.repeat(family, n_blocks)  # [B]
    depth = np.arange(len(hashes)) - np.repeat(np.cumsum(n_blocks) - n_blocks, n_blocks) + 1
    is_deep = 2 * depth >= n_blocks[owner]  # the last block of each prompt is
    hashes, owner, depth = hashes[is_deep], owner[is_deep], depth[is_deep]
    members = np.minimum(counts[np.searchsorted(known, hashes)], _COUNTED_MEMBERS)
    saved = depth * (members - 1) / members
    starts = np.unique(owner, return_index=True)[1]
    most = np.maximum.reduceat(saved, starts)  # of each question that has blocks
    is_best = (saved > 0) & (saved == np.repeat(most, np.diff(starts, append=len(owner))))
    found, first = np.unique(owner[is_best], return_index=True)  # of equal ones the shallowest
    best = np.flatnonzero(is_best)[first]
    _, named_by, number = np.unique(hashes[best], return_index=True, return_inverse=True)
    family[found] = found[named_by[number]]
    shared[found] = depth[best] * BLOCK_TOKENS
    alone = np.bincount(family, minlength=len(family))[family] == 1
    shared[alone] = 0
    return family, shared


def count_shared(prompts: Sequence[np.ndarray]) -> int:
    """How many tokens these prompts begin with alike: fewer than the shortest has, and none behind a media slot."""
    end = min(len(prompt) for prompt in prompts) - 1
    heads = np.stack([prompt[:end] for prompt in prompts])  # [Q, end]
    same = (heads == heads[0]).all(axis=0) & (heads[0] != MEDIA_SLOT_ID)
    return end if same.all() else int(same.argmin())
