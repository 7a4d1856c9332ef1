"""A corpus, on a disk or in a bucket (DESIGN 4.3).

Its files are `{train,val,test}/*.parquet`, `catalog.jsonl`, `manifest.json` and `report.md`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline import storage
from data_pipeline.errors import InputError
from data_pipeline.locations import Location, filesystem_of, join, locate
from data_pipeline.records.catalog import CATALOG_FILE, ToolCatalog
from data_pipeline.records.schema import CORPUS_SCHEMA, SCHEMA_VERSION, SPLITS, ToolRecord

if TYPE_CHECKING:
    import ray.data

MANIFEST_FILE = "manifest.json"
FORMAT = "toolmm-corpus"
_BATCH_ROWS = 1024  # that are Python objects at a time while records are read


class Corpus:
    """A prepared corpus, opened for reading. Reading a shard checks its hash."""

    def __init__(
        self, path: Location, manifest: dict[str, Any], catalog: ToolCatalog, media_root: Location | None
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.catalog = catalog
        self.media_root = media_root

    @classmethod
    def open(cls, path: str | Location, media_root: str | Location | None = None) -> Corpus:
        """Open a corpus folder: manifest, catalogue hash, and presence and size of every shard are checked.

        Args:
            path: folder that `prepare` wrote, or its URI.
            media_root: where the media are now, if not where the manifest says.

        Raises:
            InputError: no corpus there, or something is missing or altered.
        """
        folder = storage.open_folder(locate(path).absolute())
        manifest = _load_manifest(folder)
        catalog = ToolCatalog.load_jsonl(folder / CATALOG_FILE)
        if catalog.content_hash != manifest["catalog_hash"]:
            raise InputError(f"{folder / CATALOG_FILE} was altered since `prepare` wrote it; run `prepare` again.")
        for entry in manifest["files"]:
            _check_size(folder / entry["path"], entry["bytes"])
        root = media_root if media_root is not None else manifest["media_root"]
        return cls(folder, manifest, catalog, None if root is None else join(folder, str(root)))

    @property
    def data_hash(self) -> str:
        return self.manifest["data_hash"]

    def shards(self, split: str) -> list[Location]:
        """The split's Parquet files in order, each checked against its hash."""
        if split not in SPLITS:
            raise InputError(f"split {split!r} is unknown; it must be one of {', '.join(SPLITS)}.")
        entries = [entry for entry in self.manifest["files"] if entry["split"] == split]
        for entry in entries:
            if _hash_shard(self.path / entry["path"]) != entry["sha256"]:
                raise _damaged(self.path / entry["path"], "its content is not what `prepare` wrote")
        return [self.path / entry["path"] for entry in entries]

    def shard_rows(self, split: str) -> list[tuple[Location, int]]:
        """`shards`, and how many rows are in each."""
        rows = [entry["rows"] for entry in self.manifest["files"] if entry["split"] == split]
        return list(zip(self.shards(split), rows, strict=True))

    def media_hashes(self, *splits: str) -> list[str]:
        """sha256 of every medium of these splits that was there, once each, sorted."""
        tables = (table for split in splits for table in self.tables(split, ["media_sha256"]))
        found = [table["media_sha256"].unique() for table in tables]
        return sorted(set(pa.chunked_array(found, pa.string()).unique().to_pylist()) - {""})

    def tables(self, split: str, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """The rows of each shard of the split, in order, in `CORPUS_SCHEMA`; None = all of its columns."""
        for shard in self.shards(split):
            yield _read_shard(shard, columns)

    def table(self, split: str) -> pa.Table:
        """All rows of the split, in order, in `CORPUS_SCHEMA`."""
        return pa.concat_tables([CORPUS_SCHEMA.empty_table(), *self.tables(split)])

    def records(self, split: str) -> Iterator[ToolRecord]:
        for table in self.tables(split):
            for batch in table.to_batches(_BATCH_ROWS):
                for row in batch.to_pylist():
                    yield ToolRecord.from_row(row)

    def dataset(self, split: str) -> ray.data.Dataset:
        """The split as a Ray Dataset, one block of work per shard."""
        import ray.data

        shards = self.shards(split)
        if not shards:
            return ray.data.from_arrow(CORPUS_SCHEMA.empty_table())
        names = [filesystem_of(shard)[1] for shard in shards]
        filesystem = filesystem_of(self.path)[0]
        return ray.data.read_parquet(names, filesystem=filesystem, override_num_blocks=len(shards))


def _load_manifest(folder: Location) -> dict[str, Any]:
    path = folder / MANIFEST_FILE
    if not storage.exists(path):
        raise InputError(
            f"no corpus at {folder} ({MANIFEST_FILE} is missing); run `prepare` first or correct the path."
        )
    try:
        manifest = json.loads(storage.read_bytes(path))
        is_ours = manifest["format"] == FORMAT
        version = manifest["schema_version"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error}); run `prepare` again.") from error
    if not is_ours or version != SCHEMA_VERSION:
        raise InputError(
            f"{path} describes format {manifest['format']!r}, schema version {version!r}; this code reads {FORMAT!r}, "
            f"version {SCHEMA_VERSION}: run `prepare` again."
        )
    return manifest


def _check_size(path: Location, expected_bytes: int) -> None:
    try:
        n_bytes = storage.size_of(path)
    except FileNotFoundError:
        raise _damaged(path, "it is missing") from None
    if n_bytes != expected_bytes:
        raise _damaged(path, f"it has {n_bytes} bytes instead of {expected_bytes}")


def _hash_shard(path: Location) -> str:
    try:
        return storage.hash_file(path)
    except OSError as error:
        raise _damaged(path, str(error)) from error


def _read_shard(path: Location, columns: list[str] | None = None) -> pa.Table:
    filesystem, name = filesystem_of(path)
    try:
        with pq.ParquetFile(name, filesystem=filesystem, page_checksum_verification=True) as file:
            if file.schema_arrow != CORPUS_SCHEMA:
                raise _damaged(path, "its columns are not those of a corpus")
            return file.read(columns)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Location, why: str) -> InputError:
    return InputError(f"corpus shard {path} cannot be used: {why}; copy the corpus again or run `prepare` again.")
