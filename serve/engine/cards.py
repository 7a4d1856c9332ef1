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

MAX_CARDS = 32_768  # vectors in memory: 72 MiB of width 576
MAX_STORED = 32_768  # of a model on the disk, where a search reads them all; one more, and they are begun anew
STORED_AT_ONCE = 16  # a catalogue's cards are stored; the few functions of a chat are quicker made than found
_BATCH = 64  # cards of one pass
_MODALITY = "card"
_Key = tuple[str, str]  # a model, and a card's hash
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
        self._vectors: OrderedDict[_Key, np.ndarray] = OrderedDict()
        self._unstored: set[_Key] = set()  # made here, not yet on the disk

    def find_new(self, model_id: str, cards: Sequence[np.ndarray]) -> list[int]:
        """The places of those cards, as of `find`, that will need a pass of the model."""
        keys = _to_keys(model_id, cards)
        self._load({key for key in keys if key not in self._vectors})
        return [i for i, key in enumerate(keys) if key not in self._vectors]

    def find(self, model_id: str, cards: Sequence[np.ndarray], encode: _Encode) -> np.ndarray:
        """The vectors of cards, the model's own passes for those that are new.

        Args:
            model_id: of the model's weights and how they compute.
            cards: int32 [T] each, of `encode_card`; at least one.
            encode: gives float32 [N, D] for N cards.

        Returns:
            float32 [K, D].
        """
        keys = _to_keys(model_id, cards)
        self._load({key for key in keys if key not in self._vectors})
        new = {key: card for key, card in zip(keys, cards, strict=True) if key not in self._vectors}
        if new:
            parts = [encode(list(new.values())[start : start + _BATCH]) for start in range(0, len(new), _BATCH)]
            self._vectors.update(zip(new, np.concatenate(parts), strict=True))
            self._unstored |= new.keys()
        self._store([key for key in dict.fromkeys(keys) if key in self._unstored])
        for key in keys:
            self._vectors.move_to_end(key)
        found = np.stack([self._vectors[key] for key in keys])
        while len(self._vectors) > MAX_CARDS:
            self._unstored.discard(self._vectors.popitem(last=False)[0])
        return found

    def _load(self, missing: set[_Key]) -> None:
        """Put into memory what lies on the disk of these, if they are many; all of one model."""
        if len(missing) < STORED_AT_ONCE:
            return
        ((model_id, _), *_) = missing
        try:
            index, matrix = FeatureLake(self._folder, model_id).load([digest for _, digest in missing])
        except (InputError, OSError):  # none yet, or not to be read: they are made anew
            return
        self._vectors.update({(model_id, digest): matrix[row] for digest, row in index.items()})

    def _store(self, keys: Sequence[_Key]) -> None:
        """Put these onto the disk, if they are many; all of one model."""
        if len(keys) < STORED_AT_ONCE:
            return
        self._unstored.difference_update(keys)  # tried once
        vectors = np.stack([self._vectors[key] for key in keys])
        try:
            lake = FeatureLake.create(self._folder, keys[0][0], vectors.shape[1], "float32")
            if len(lake.known()) + len(keys) > MAX_STORED:
                storage.remove_folder(lake.path)
                lake = FeatureLake.create(self._folder, keys[0][0], vectors.shape[1], "float32")
            lake.write_features([digest for _, digest in keys], _MODALITY, vectors)
        except (InputError, OSError) as error:
            logger.warning("the vectors of %d tool cards could not be stored: %s", len(keys), error)


def _to_keys(model_id: str, cards: Sequence[np.ndarray]) -> list[_Key]:
    return [(model_id, hashlib.sha256(card.astype("<i4").tobytes()).hexdigest()) for card in cards]
