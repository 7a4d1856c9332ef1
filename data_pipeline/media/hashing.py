"""Content hashes of media files."""

from __future__ import annotations

from dataclasses import dataclass

from data_pipeline import storage
from data_pipeline.locations import Location

HASH_BYTES = 32  # of a sha256


@dataclass(frozen=True)
class MediaJob:
    """Files to hash: paths relative to a folder or bucket that every Ray node can read."""

    media_root: Location
    media_uris: tuple[str, ...]


def hash_media(job: MediaJob) -> bytes:
    """The sha256 of each file's bytes, one after the other; zeros where it is missing or cannot be read."""
    return b"".join(_hash_medium(job.media_root / uri) for uri in job.media_uris)


def _hash_medium(file: Location) -> bytes:
    try:
        return bytes.fromhex(storage.hash_file(file))
    except OSError:  # missing, a folder, or not readable: all count as missing and are reported by the corpus
        return bytes(HASH_BYTES)
