"""Vectors on their way into the feature lake: batches are small, and a file for each would make thousands of files."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import numpy as np

from data_pipeline.media.feature_lake import FeatureLake

SHARD_ROWS = 10_000  # of one file
WRITE_EVERY_S = 60.0  # fewer rows than that are written, too: a pass that is killed loses no more than this


class LakeWriter:
    """Gathers what the encoders give and writes it in shards. Use it as a context manager.

    What is at hand is written as well where the pass ends by an error.

    Attributes:
        write_s: seconds spent on writing.
    """

    def __init__(self, lake: FeatureLake) -> None:
        self._lake = lake
        self._vectors: defaultdict[str, list[tuple[list[str], np.ndarray]]] = defaultdict(list)
        self._faults: defaultdict[str, dict[str, str]] = defaultdict(dict)
        self._n_rows = 0
        self._written_s = time.monotonic()
        self.write_s = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.flush()

    def add(self, row: Mapping[str, Any]) -> None:
        """Take the result of a batch, as `EncodeBatch` gives it."""
        modality, sha256s = row["modality"], row["sha256"]
        if sha256s:
            vectors = np.frombuffer(row["vectors"], self._lake.dtype).reshape(len(sha256s), -1)
            self._vectors[modality].append((sha256s, vectors))
        self._faults[modality] |= json.loads(row["faults"])
        self._n_rows += len(sha256s)
        if self._n_rows >= SHARD_ROWS or time.monotonic() - self._written_s >= WRITE_EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Write all that is at hand, a file for each modality."""
        started_s = time.monotonic()
        for modality, batches in self._vectors.items():
            sha256s = [sha256 for batch, _ in batches for sha256 in batch]
            self._lake.write_features(sha256s, modality, np.concatenate([vectors for _, vectors in batches]))
        for modality, faults in self._faults.items():
            self._lake.write_quarantine(list(faults), modality, list(faults.values()))
        self._vectors.clear()
        self._faults.clear()
        self._n_rows = 0
        self._written_s = time.monotonic()
        self.write_s += self._written_s - started_s
