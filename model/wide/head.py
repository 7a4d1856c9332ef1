"""A linear model of which tools answer a question, over pieces of its words and its medium's vector.

The wide half of "wide and deep" (Cheng et al. 2016, arXiv 1606.07792): where a catalogue has few questions for each
tool, the words that came with a tool tell more than a small language model learns from them in a few epochs. It is
fitted in closed form (`model.wide.fit`), and its opinion is pooled with the language model's at each decision
(`model.decode.pool`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save
from scipy import sparse
from scipy.special import log_softmax
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.preprocessing import normalize

from data_pipeline.errors import InputError

EQUAL_WEIGHT = 0.5  # as much as the language model
N_COLUMNS = 2**14  # that pieces of words are hashed to
_PIECES = HashingVectorizer(
    analyzer="char_wb",  # of two to four letters within a word and its edges: endings and misspellings share most
    ngram_range=(2, 4),
    alternate_sign=False,
    norm=None,  # pyright: ignore[reportArgumentType]  # documented; the inferred type knows the default alone
    n_features=N_COLUMNS,
)


@dataclass(frozen=True)
class WideHead:
    """Fitted weights.

    Attributes:
        tool_ids: the K tools that it knows.
        idf: float32 [N_COLUMNS], inverse document frequency of each column in training. What training lacks counts in
            the length of a question, so that foreign words make the head less sure.
        word_weights: float16 [N_COLUMNS, K].
        media_weights: float16 [E, K]; E is 0 where no training question has a medium.
        scale: of the scores; the larger, the surer.
    """

    tool_ids: tuple[str, ...]
    idf: np.ndarray
    word_weights: np.ndarray
    media_weights: np.ndarray
    scale: float

    def log_probabilities(self, words: Sequence[str], media: Sequence[np.ndarray | None]) -> np.ndarray:
        """What it thinks of each tool.

        Args:
            words: of B questions.
            media: vectors [E] of their media, None where there is none.

        Returns:
            float64 [B, K]; each row's exponentials sum to 1.
        """
        pieces = weigh_pieces(count_pieces(words), self.idf)  # [B, N_COLUMNS]
        scores = np.zeros((len(words), len(self.tool_ids)))
        for row, medium in enumerate(media):
            columns, values = (
                part[pieces.indptr[row] : pieces.indptr[row + 1]] for part in (pieces.indices, pieces.data)
            )
            scores[row] = values @ self.word_weights[columns].astype(np.float32)
            if medium is not None and len(self.media_weights):
                scores[row] += unit(medium) @ self.media_weights.astype(np.float32)
        return log_softmax(self.scale * scores, axis=1)

    def to_bytes(self) -> bytes:
        """As safetensors: columns that no training question has are left out."""
        columns = np.flatnonzero(self.word_weights.any(axis=1)).astype(np.int32)
        return save(
            {
                "columns": columns,
                "idf": self.idf,
                "word_weights": np.ascontiguousarray(self.word_weights[columns]),
                "media_weights": self.media_weights,
                "scale": np.array([self.scale]),
                "tool_ids": np.frombuffer(json.dumps(self.tool_ids).encode(), dtype=np.uint8),
            }
        )

    @classmethod
    def from_bytes(cls, content: bytes) -> WideHead:
        """Read what `to_bytes` gave.

        Raises:
            InputError: it is damaged, or something else.
        """
        try:
            tensors = load(content)
            columns, tool_ids = tensors["columns"], tuple(json.loads(tensors["tool_ids"].tobytes()))
            idf, media_weights, scale = tensors["idf"], tensors["media_weights"], float(tensors["scale"][0])
            if idf.shape != (N_COLUMNS,) or media_weights.shape[1:] != (len(tool_ids),):
                raise ValueError("its tensors do not fit each other")
            word_weights = np.zeros((N_COLUMNS, len(tool_ids)), dtype=np.float16)
            word_weights[columns] = tensors["word_weights"]
            return cls(tool_ids, idf, word_weights, media_weights, scale)
        except (SafetensorError, KeyError, ValueError, IndexError) as error:
            raise InputError(f"this is no wide head of this code ({error}); train and export the run again.") from error


@dataclass(frozen=True)
class WeightedHead:
    """A head and how much it counts: `weight` in 0..1, of which the language model has the rest."""

    head: WideHead
    weight: float


def count_pieces(words: Sequence[str]) -> Any:
    """How often each piece stands in each text, a CSR matrix [B, N_COLUMNS]."""
    return sparse.csr_matrix(_PIECES.transform(words))


def weigh_pieces(counts: Any, idf: np.ndarray) -> Any:
    """CSR matrix [B, N_COLUMNS] with rows of unit length: (1 + log count) x idf."""
    weighed = counts.astype(np.float32)
    weighed.data = (1 + np.log(weighed.data)) * idf[weighed.indices]
    return normalize(weighed, copy=False)


def unit(medium: np.ndarray) -> np.ndarray:
    """float32 [E] of length 1, or 0 as it was."""
    vector = np.asarray(medium, dtype=np.float32)
    return vector / max(float(np.linalg.norm(vector)), 1e-12)
