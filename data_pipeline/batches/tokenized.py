"""What planning knows of a tokenised split: a few numbers of each question. The tokens stay in storage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from data_pipeline.batches.families import find_families
from data_pipeline.batches.steps import PlanIndex
from data_pipeline.batches.token_shards import TokenShards
from data_pipeline.batches.vector_table import VectorFile
from data_pipeline.errors import InputError


@dataclass(frozen=True)
class TokenizedQuestions:
    """The questions of a split that can be used, in the order of the corpus, as planning sees them.

    Attributes:
        index: sizes of the N questions.
        loss_weight: float64 [N]; loss-bearing tokens of each question, its answers counted as separate rows.
        n_asked: int64 [N]; how often each question is compared with cards: once, a dialogue in front of each call.
        is_dialogue: bool [N].
        modalities: of each question.
        sources: of each question.
        n_too_long: dialogues that were left out.
        n_without_vector: questions that were left out because nothing is known of their medium.
    """

    index: PlanIndex
    loss_weight: np.ndarray
    n_asked: np.ndarray
    is_dialogue: np.ndarray
    modalities: list[str]
    sources: list[str]
    n_too_long: int
    n_without_vector: int = 0


@dataclass(frozen=True)
class StoredQuestions:
    """Where a rank reads the N questions that a plan names. Arrays are in the object store; a node's ranks share them.

    Attributes:
        shards: token ids.
        rows: int32 [N]; which of the shards' questions each is.
        media_row: ref to int64 [N]; each question's row of the vectors, -1 for text.
        vectors: of all media of the corpus; not in the object store, but mapped from their file.
        family: ref to int64 [N]; see `PlanIndex`.
    """

    shards: TokenShards
    rows: Any
    media_row: Any
    vectors: VectorFile
    family: Any


def select_questions(
    shards: TokenShards, media_hashes: Sequence[str], vectors: VectorFile
) -> tuple[TokenizedQuestions, StoredQuestions]:
    """The questions of a tokenised split that can be used: those without a medium, and those whose medium is known.

    Args:
        shards: of the split.
        media_hashes: sha256 of each row of the vectors.
        vectors: of these media.

    Raises:
        InputError: if nothing is left.
    """
    known = pa.array(media_hashes, pa.string())
    columns: dict[str, list[np.ndarray]] = {}
    names: dict[str, list[str]] = {"modality": [], "source": []}
    first = 0
    for facts in shards.read_facts():
        row = pc.index_in(facts["media_sha256"], value_set=known).fill_null(-1).to_numpy()  # pyright: ignore[reportAttributeAccessIssue]
        has_medium = pc.not_equal(facts["modality"].cast(pa.string()), "text").to_numpy()  # pyright: ignore[reportAttributeAccessIssue]
        is_usable = ~has_medium | (row >= 0)
        used = facts.filter(pa.array(is_usable))
        for name in ("n_rows", "tree_tokens", "loss_tokens", "n_asked", "is_dialogue"):
            columns.setdefault(name, []).append(used[name].to_numpy())
        for name in ("row_tokens", "prompt_blocks"):
            lists = used[name].combine_chunks()
            columns.setdefault(name, []).append(lists.flatten().to_numpy())
            columns.setdefault(f"{name}_count", []).append(lists.value_lengths().to_numpy())
        for name, seen in names.items():
            columns.setdefault(name, []).append(_number_names(used[name], seen))
        columns.setdefault("media_row", []).append(np.where(has_medium, row, -1)[is_usable])
        columns.setdefault("row", []).append(first + np.flatnonzero(is_usable).astype(np.int32))
        first += len(facts)
    if not sum(map(len, columns.get("row", []))):
        raise InputError("the training split holds no usable question; see the corpus report for what was left out.")
    found = {name: np.concatenate(columns.pop(name)) for name in list(columns)}
    family, shared_tokens = find_families(found.pop("prompt_blocks"), found.pop("prompt_blocks_count"))
    index = PlanIndex(
        n_rows=found["n_rows"].astype(np.int64),
        n_tokens=found["tree_tokens"].astype(np.int64),
        row_tokens=found["row_tokens"],
        family=family,
        shared_tokens=shared_tokens,
    )
    questions = TokenizedQuestions(
        index=index,
        loss_weight=found["loss_tokens"].astype(np.float64),
        n_asked=found["n_asked"].astype(np.int64),
        is_dialogue=found["is_dialogue"],
        modalities=[names["modality"][number] for number in found["modality"]],
        sources=[names["source"][number] for number in found["source"]],
        n_too_long=shards.n_too_long,
        n_without_vector=first - len(index),
    )
    stored = StoredQuestions(
        shards=shards,
        rows=ray.put(found["row"]),
        media_row=ray.put(found["media_row"].astype(np.int64)),
        vectors=vectors,
        family=ray.put(family),
    )
    return questions, stored


def _number_names(column: pa.ChunkedArray, seen: list[str]) -> np.ndarray:
    """The column's texts as their places in `seen`, int16 [rows]; those that are not there yet are added."""
    encoded = column.combine_chunks()
    places = []
    for name in encoded.dictionary.to_pylist():
        if name not in seen:
            seen.append(name)
        places.append(seen.index(name))
    return np.array(places, dtype=np.int16)[encoded.indices.to_numpy()]
