"""Baselines that a trained model has to beat: the most frequent tools, the nearest training question, the nearest
description.

The first two return raw answers, so the scorer treats them like a model's; their rules see the training split alone.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from data_pipeline.errors import InputError
from data_pipeline.records.catalog import Tool
from data_pipeline.records.prompts import ANSWER_END, render_target
from data_pipeline.records.schema import Modality, ToolRecord

if TYPE_CHECKING:
    from scipy import sparse

_TEST_BATCH = 256  # test questions whose similarities to all training questions are held at once


def majority_baseline(
    train_records: Sequence[ToolRecord], test_records: Sequence[ToolRecord], k: int = 1
) -> list[list[str]]:
    """Answer with the `k` tools that are right for most training questions of the same modality.

    A modality with fewer than `k` tools (or none) is filled up with the most frequent tools over all; ties go by name.

    Returns:
        one list of up to `k` raw answers per test record.
    """
    _check_train(train_records)
    ranking = _rank_tools(train_records)
    overall = _order(Counter(tool_id for record in train_records for tool_id in record.valid_tool_ids))
    answers = {}
    for modality in Modality:
        tools = list(dict.fromkeys([*ranking.get(modality, []), *overall]))[:k]
        answers[modality] = [_render_answer(tool_id) for tool_id in tools]
    return [list(answers[record.modality]) for record in test_records]


def knn_baseline(
    train_records: Sequence[ToolRecord],
    test_records: Sequence[ToolRecord],
    media_vectors: Mapping[str, np.ndarray] | None = None,
    k: int = 1,
) -> list[list[str]]:
    """Answer with the tools of the most similar training questions of the same modality.

    Similarity = cosine of tf-idf vectors over words and word pairs, plus the cosine of the media vectors where both
    questions have one. Of a neighbour's right tools, the more frequent in training come first; ties between neighbours
    go by training order. A modality that training does not have falls back on all training questions.

    Args:
        train_records, test_records: the questions.
        media_vectors: media_sha256 -> vector [E]; None leaves media out.
        k: different tools to name.

    Returns:
        one list of up to `k` raw answers per test record, the nearest neighbour's first.
    """
    _check_train(train_records)
    ranking = _rank_tools(train_records)
    rank = {modality: {tool_id: i for i, tool_id in enumerate(tools)} for modality, tools in ranking.items()}
    train_tools = [sorted(record.valid_tool_ids, key=rank[record.modality].__getitem__) for record in train_records]
    train_terms, test_terms = _compute_tfidf(train_records, test_records)  # [N, D], [M, D]
    train_media = _stack_media(train_records, media_vectors)  # [N, E] or None
    test_media = _stack_media(test_records, media_vectors)  # [M, E] or None

    answers: list[list[str]] = [[] for _ in test_records]
    for modality in Modality:
        test_rows = np.array([i for i, record in enumerate(test_records) if record.modality is modality], dtype=int)
        train_rows = np.array([i for i, record in enumerate(train_records) if record.modality is modality], dtype=int)
        if len(train_rows) == 0:
            train_rows = np.arange(len(train_records))
        for start in range(0, len(test_rows), _TEST_BATCH):
            batch = test_rows[start : start + _TEST_BATCH]
            similarity = (test_terms[batch] @ train_terms[train_rows].T).toarray()  # [B, N_modality]
            if train_media is not None and test_media is not None:
                similarity += test_media[batch] @ train_media[train_rows].T
            for row, scores in zip(batch, similarity, strict=True):
                answers[row] = _name_tools(scores, train_rows, train_tools, k)
    return answers


def description_baseline(tools: Sequence[Tool], instructions: Sequence[str], k: int = 1) -> list[list[str]]:
    """Name the tools whose descriptions are nearest to the question by tf-idf over words; no training at all.

    Args:
        tools: to choose from, names and descriptions.
        instructions: the words of the questions.
        k: different tools to name.

    Returns:
        one list of `k` tool ids per question, the nearest first; ties go by the order of the tools.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer  # a second of import time

    counter = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\w+")
    cards: Any = counter.fit_transform([f"{tool.tool_id} {tool.description}" for tool in tools])
    similarity = (counter.transform(instructions) @ cards.T).toarray()  # [Q, K]
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    return [[tools[tool].tool_id for tool in row] for row in nearest]


def _name_tools(scores: np.ndarray, train_rows: np.ndarray, train_tools: Sequence[list[str]], k: int) -> list[str]:
    """Raw answers with the first `k` different tools of the neighbours, by falling score [N]."""
    order = [int(np.argmax(scores))] if k == 1 else np.argsort(-scores, kind="stable")
    tools: dict[str, None] = {}
    for neighbour in order:
        tools.update(dict.fromkeys(train_tools[train_rows[neighbour]]))
        if len(tools) >= k:
            break
    return [_render_answer(tool_id) for tool_id in list(tools)[:k]]


def _render_answer(tool_id: str) -> str:
    """What a model's decoded answer looks like: the training target without its end marker ``###``."""
    return render_target(tool_id).removesuffix(ANSWER_END) + "}"


def _check_train(train_records: Sequence[ToolRecord]) -> None:
    if not train_records:
        raise InputError("a baseline needs training records and there are none; give the train split.")


def _rank_tools(records: Sequence[ToolRecord]) -> dict[Modality, list[str]]:
    counts: defaultdict[Modality, Counter[str]] = defaultdict(Counter)
    for record in records:
        counts[record.modality].update(record.valid_tool_ids)
    return {modality: _order(counter) for modality, counter in counts.items()}


def _order(counts: Counter[str]) -> list[str]:
    return sorted(counts, key=lambda tool_id: (-counts[tool_id], tool_id))


def _compute_tfidf(
    train_records: Sequence[ToolRecord], test_records: Sequence[ToolRecord]
) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """Unit-length tf-idf rows [N, D] and [M, D] of words and word pairs; document frequencies are those of training.

    Terms are hashed to D = 2**20 columns, so a word that training lacks still counts in a test question's length, and
    training questions without any word are no error. Collisions are rare with the some 10^4 terms of these corpora.
    """
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer  # a second of import time

    counter: Any = HashingVectorizer(
        ngram_range=(1, 2),
        token_pattern=r"\w+",
        alternate_sign=False,
        norm=None,  # pyright: ignore[reportArgumentType]  # documented; the inferred type knows the default alone
    )
    train, test = (
        counter.transform([record.instruction for record in records]) for records in (train_records, test_records)
    )
    weights: Any = TfidfTransformer(sublinear_tf=True).fit(train)
    return weights.transform(train), weights.transform(test)


def _stack_media(records: Sequence[ToolRecord], media_vectors: Mapping[str, np.ndarray] | None) -> np.ndarray | None:
    """Unit-length media vectors, float32 [N, E]; a zero row where a record has none; None without any vector at all."""
    from sklearn.preprocessing import normalize

    if not media_vectors:
        return None
    dim = len(next(iter(media_vectors.values())))
    rows = np.zeros((len(records), dim), dtype=np.float32)
    for row, record in enumerate(records):
        rows[row] = media_vectors.get(record.media_sha256, 0.0)
    return np.asarray(normalize(rows))
