"""What training and evaluation read: questions whose medium, if any, has a vector in the feature lake."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from data_pipeline import storage
from data_pipeline.batches.vector_table import VectorFile, VectorTable, write_vectors
from data_pipeline.corpus.files import Corpus
from data_pipeline.errors import InputError
from data_pipeline.locations import Location
from data_pipeline.media.feature_lake import FeatureLake
from data_pipeline.records.schema import SPLITS, ToolRecord
from ray_jobs.config import RunSpec

EMBED_FILE = "embed.json"  # which encoder made the run's vectors; `embed` writes it


@dataclass(frozen=True)
class MediaVectors:
    """The vectors of a corpus.

    Attributes:
        encoder_id: what made them; "" for a corpus without usable media.
        rows: media_sha256 -> row of `table`.
        embed_dim: E.
        write: writes the file of the vectors, or finds it.
        encoder_name: as `load_encoder` took it; "" where `embed` did not note it yet.
    """

    encoder_id: str
    rows: dict[str, int]
    embed_dim: int
    write: Callable[[], VectorFile]
    encoder_name: str = ""

    @functools.cached_property
    def table(self) -> VectorTable:
        """The N vectors, mapped; the file is written at the first use, so that a job that is refused leaves none."""
        return VectorTable(self.write())

    def has(self, record: ToolRecord) -> bool:
        """Whether the record can be used: it is text, or its medium has a vector."""
        return not record.has_media or record.media_sha256 in self.rows

    def questions(self, corpus: Corpus, split: str) -> Iterator[ToolRecord]:
        """Those of a split that can be used, without its dialogues."""
        return (record for record in corpus.records(split) if not record.is_dialogue and self.has(record))

    def get(self, record: ToolRecord) -> np.ndarray | None:
        """float32 [E], or None for text."""
        if not record.has_media:
            return None
        return self.table.take([self.rows[record.media_sha256]])[0]

    def map_of(self, records: Iterable[ToolRecord]) -> dict[str, np.ndarray]:
        """[E] in the stored dtype, not read yet, by media_sha256: of the records' media that have a vector."""
        found = dict.fromkeys(record.media_sha256 for record in records if record.media_sha256 in self.rows)
        return {sha256: self.table.matrix[self.rows[sha256]] for sha256 in found}


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
    """The vectors of the corpus's media, in a file of the run that is written when it is used, if nobody has yet.

    Media without one (absent file, quarantined) are simply not in it.

    Args:
        spec: of the run.
        corpus: its corpus.
        splits: those that are going to be read; where they have no media, no vector is needed.

    Raises:
        InputError: the splits have media files, but `embed` has not run on this corpus.
    """
    hashes = corpus.media_hashes(*splits)
    if not hashes:
        embed_dim = spec.model.encoder_dim
        return MediaVectors("", {}, embed_dim, lambda: VectorFile(None, 0, embed_dim, "float32"))
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
    lake = FeatureLake(spec.lake_path, encoder_id)
    rows = lake.find(corpus.media_hashes(*SPLITS))  # of all splits: one file for those who train and who evaluate
    key = "\n".join([encoder_id, *rows])
    shape = len(rows), lake.embed_dim
    fill = functools.partial(lake.fill, rows=rows)
    write = functools.partial(write_vectors, spec.vectors_dir, key, shape, lake.dtype, fill)
    return MediaVectors(encoder_id, rows, lake.embed_dim, write, encoder_name)
