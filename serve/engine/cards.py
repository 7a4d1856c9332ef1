"""The vectors of tool cards: each made by one pass of the model, once."""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from data_pipeline import storage
from data_pipeline.errors import InputError
from data_pipeline.media.feature_lake import FeatureLake

MAX_CARDS = 16_384  # vectors in memory: 37 MiB of width 576
STORED_AT_ONCE = 16  # a catalogue's cards are stored; the few functions of a chat are quicker made than found
_BATCH = 64  # cards of one pass
_MODALITY = "card"
_Encode = Callable[[list[np.ndarray]], np.ndarray]

logger = logging.getLogger("ray.serve")


class CardVectors:
    """Vectors by model and card: in memory, and those of whole catalogues in a feature lake on this machine's disk.

    So a service that starts again, and further replicas on the machine, make no pass for what was encoded once. Without
    a disk to write to everything works as before, only slower at the start.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """`folder` is the lake's; by default in this user's cache."""
        self._folder = storage.cache_folder() / "cards" if folder is None else folder
        self._vectors: OrderedDict[tuple[str, str], np.ndarray] = OrderedDict()

    def find(self, model_id: str, cards: Sequence[np.ndarray], encode: _Encode) -> np.ndarray:
        """The vectors of cards, the model's own passes for those that are new.

        Args:
            model_id: of the model's weights and how they compute.
            cards: int32 [T] each, of `encode_card`; at least one.
            encode: gives float32 [N, D] for N cards.

        Returns:
            float32 [K, D].
        """
        keys = [(model_id, hashlib.sha256(card.astype("<i4").tobytes()).hexdigest()) for card in cards]
        missing = {key: card for key, card in zip(keys, cards, strict=True) if key not in self._vectors}
        if len(missing) >= STORED_AT_ONCE:
            for digest, vector in self._load(model_id, [digest for _, digest in missing]).items():
                del missing[model_id, digest]
                self._vectors[model_id, digest] = vector
        if missing:
            new = list(missing.values())
            parts = [encode(new[start : start + _BATCH]) for start in range(0, len(new), _BATCH)]
            vectors = np.concatenate(parts)  # [N, D]
            self._vectors.update(zip(missing, vectors, strict=True))
            if len(missing) >= STORED_AT_ONCE:
                self._store(model_id, [digest for _, digest in missing], vectors)
        for key in keys:
            self._vectors.move_to_end(key)
        found = np.stack([self._vectors[key] for key in keys])
        while len(self._vectors) > MAX_CARDS:
            self._vectors.popitem(last=False)
        return found

    def _load(self, model_id: str, digests: Sequence[str]) -> dict[str, np.ndarray]:
        try:
            index, matrix = FeatureLake(self._folder, model_id).load(digests)
        except (InputError, OSError):  # none yet, or not to be read: they are made anew
            return {}
        return {digest: matrix[row] for digest, row in index.items()}

    def _store(self, model_id: str, digests: Sequence[str], vectors: np.ndarray) -> None:
        try:
            lake = FeatureLake.create(self._folder, model_id, vectors.shape[1], "float32")
            lake.write_features(digests, _MODALITY, vectors)
        except (InputError, OSError) as error:
            logger.warning("the vectors of %d tool cards could not be stored: %s", len(digests), error)
