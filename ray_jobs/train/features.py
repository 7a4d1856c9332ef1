"""What training and evaluation read: questions whose medium, if any, has a vector in the feature lake."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from data_pipeline import storage
from data_pipeline.corpus.files import Corpus
from data_pipeline.errors import InputError
from data_pipeline.locations import Location
from data_pipeline.media.feature_lake import FeatureLake
from data_pipeline.records.schema import ToolRecord
from ray_jobs.config import RunSpec

EMBED_FILE = "embed.json"  # which encoder made the run's vectors; `embed` writes it


@dataclass(frozen=True)
class MediaVectors:
    """The vectors of a corpus.

    Attributes:
        encoder_id: what made them; "" for a corpus without usable media.
        rows: media_sha256 -> row of `matrix`.
        matrix: float16 or float32 [N, E].
        encoder_name: as `load_encoder` took it; "" where `embed` did not note it yet.
    """

    encoder_id: str
    rows: dict[str, int]
    matrix: np.ndarray
    encoder_name: str = ""

    def has(self, record: ToolRecord) -> bool:
        """Whether the record can be used: it is text, or its medium has a vector."""
        return not record.has_media or record.media_sha256 in self.rows

    def get(self, record: ToolRecord) -> np.ndarray | None:
        """float32 [E], or None for text."""
        if not record.has_media:
            return None
        return self.matrix[self.rows[record.media_sha256]].astype(np.float32)


def save_embed_info(run_dir: Location, encoder_id: str, catalog_hash: str, encoder_name: str = "") -> None:
    """Note which encoder made the vectors of the run's corpus, by what name, and with which catalogue."""
    info = {"encoder_id": encoder_id, "catalog_hash": catalog_hash, "encoder_name": encoder_name}
    storage.write_file(run_dir / EMBED_FILE, json.dumps(info) + "\n")


def read_embed_info(run_dir: Location) -> tuple[str, str] | None:
    """What `save_embed_info` noted: the encoder's id and the catalogue's hash; None where `embed` has not run.

    Raises:
        InputError: the note is damaged.
    """
    info = _read_note(run_dir)
    return info and info[:2]


def _read_note(run_dir: Location) -> tuple[str, str, str] | None:
    path = run_dir / EMBED_FILE
    if not storage.exists(path):
        return None
    try:
        info = json.loads(storage.read_bytes(path))
        return str(info["encoder_id"]), str(info["catalog_hash"]), str(info.get("encoder_name", ""))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error}); run `embed` again, it only encodes what is new.") from error


def load_media_vectors(spec: RunSpec, corpus: Corpus, *splits: str) -> MediaVectors:
    """Load the vectors of the splits' media. Media without one (absent file, quarantined) are simply not in it.

    Raises:
        InputError: the splits have media files, but `embed` has not run on this corpus.
    """
    hashes = corpus.media_hashes(*splits)
    if not hashes:
        return MediaVectors("", {}, np.zeros((0, spec.model.encoder_dim), dtype=np.float32))
    info = _read_note(spec.run_dir)
    if info is None:
        raise InputError(
            f"the corpus has {len(hashes)} media but {spec.run_dir / EMBED_FILE} is missing; run `embed` first."
        )
    encoder_id, catalog_hash, encoder_name = info
    if catalog_hash != corpus.catalog.content_hash:
        raise InputError(
            f"the tool catalogue of {corpus.path} changed after `embed` ran (now {corpus.catalog.content_hash[:12]}, "
            f"then {catalog_hash[:12]}); run `embed` again, it only encodes what is new."
        )
    rows, matrix = FeatureLake(spec.lake_path, encoder_id).load(hashes)
    return MediaVectors(encoder_id, rows, matrix, encoder_name)


def separate_usable(records: Iterable[ToolRecord], vectors: MediaVectors) -> tuple[list[ToolRecord], list[ToolRecord]]:
    """Records that can be used, and those whose medium has no vector."""
    usable, unusable = [], []
    for record in records:
        (usable if vectors.has(record) else unusable).append(record)
    return usable, unusable
