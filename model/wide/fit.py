"""Fit a wide head: ridge regression on the right tools, in closed form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import sparse
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, logsumexp

from data_pipeline.errors import InputError
from data_pipeline.records.schema import ToolRecord
from model.wide.head import N_COLUMNS, WideHead, count_pieces, unit, weigh_pieces

_RIDGE = 1.0  # from 0.1 to 3 hardly matters (docs/results.md)
_HELD_OUT = 5  # every so-manieth question tells how sure the scores may be
_DEAR = 4  # products of questions cost more than as many of columns: many questions share the frequent columns
_LOG_SCALES = (-2.0, 5.0)


def fit_wide(
    questions: Sequence[ToolRecord],
    tool_ids: Sequence[str],
    media_vectors: Mapping[str, np.ndarray],
    seed: int,
) -> WideHead:
    """Learn from questions which tools answer words and media like theirs.

    Memory and time grow with the cube of the smaller of the number of questions and some 17,000 columns.

    Args:
        questions: of the training split, N of them.
        tool_ids: all K tools that may answer.
        media_vectors: media_sha256 -> vector [E]; a medium without one counts as none.
        seed: of the draw that is held out while the scale is fitted.

    Raises:
        InputError: there is no question.
    """
    if not questions:
        raise InputError("a wide head needs training questions and there are none; set train.wide=false.")
    counts = count_pieces([record.instruction for record in questions])
    n_with = np.bincount(counts.indices, minlength=N_COLUMNS)
    idf = (np.log((1 + len(questions)) / (1 + n_with)) + 1).astype(np.float32)
    features = _join(weigh_pieces(counts, idf), questions, media_vectors)  # [N, D]
    targets = _mark_right(questions, tool_ids)  # [N, K]
    drawn = np.random.default_rng(seed).permutation(len(questions))
    held, rest = np.sort(drawn[::_HELD_OUT]), np.sort(np.delete(drawn, np.s_[::_HELD_OUT]))
    scale = 1.0
    if len(rest):
        scale = _fit_scale(features[held] @ _solve(features[rest], targets[rest]), targets[held].toarray() > 0)
    weights = _solve(features, targets).astype(np.float16)  # [D, K]
    return WideHead(tuple(tool_ids), idf, weights[:N_COLUMNS], weights[N_COLUMNS:], scale)


def _join(pieces: Any, questions: Sequence[ToolRecord], media_vectors: Mapping[str, np.ndarray]) -> Any:
    """Pieces of words beside media vectors of unit length, [N, N_COLUMNS + E]."""
    if not media_vectors:
        return pieces
    dim = len(next(iter(media_vectors.values())))
    media = np.zeros((len(questions), dim), dtype=np.float32)
    for row, record in enumerate(questions):
        if record.media_sha256 in media_vectors:
            media[row] = unit(media_vectors[record.media_sha256])
    return sparse.csr_matrix(sparse.hstack([pieces, sparse.csr_matrix(media)]))


def _mark_right(questions: Sequence[ToolRecord], tool_ids: Sequence[str]) -> Any:
    number = {tool_id: i for i, tool_id in enumerate(tool_ids)}
    marked = [(row, number[tool_id]) for row, record in enumerate(questions) for tool_id in record.valid_tool_ids]
    rows, tools = np.array(marked).T
    values = np.ones(len(marked), dtype=np.float32)
    return sparse.csr_matrix((values, (rows, tools)), shape=(len(questions), len(tool_ids)))


def _solve(features: Any, targets: Any) -> np.ndarray:
    """Ridge weights float32 [D, K], by whichever of the two normal equations is the cheaper."""
    used = np.flatnonzero(np.bincount(features.indices, minlength=features.shape[1]))
    compact = features[:, used]  # [N, U]
    weights = np.zeros((features.shape[1], targets.shape[1]), dtype=np.float32)
    if _DEAR * compact.shape[0] <= compact.shape[1]:
        gram = (compact @ compact.T).toarray()  # [N, N]
        weights[used] = compact.T @ _solve_ridge(gram, targets.toarray())
    else:
        gram = (compact.T @ compact).toarray()  # [U, U]
        weights[used] = _solve_ridge(gram, (compact.T @ targets).toarray())
    return weights


def _solve_ridge(gram: np.ndarray, right: np.ndarray) -> np.ndarray:
    gram[np.diag_indices_from(gram)] += _RIDGE
    return cho_solve(cho_factor(gram, lower=True, overwrite_a=True), right)


def _fit_scale(scores: np.ndarray, is_right: np.ndarray) -> float:
    """The scale at which the right tools, taken together, are likeliest; scores and is_right [N, K]."""

    def cost(log_scale: float) -> float:
        log_p = log_softmax(np.exp(log_scale) * scores, axis=1)
        log_p_right: Any = logsumexp(np.where(is_right, log_p, -np.inf), axis=1)
        return -float(log_p_right.mean())

    found: Any = minimize_scalar(cost, bounds=_LOG_SCALES, method="bounded")
    return float(np.exp(found.x))
