"""The feature lake: what the frozen encoder says about every distinct medium, computed once (DESIGN idea 1).

    <lake>/<encoder_id>/lake.json                 encoder id, vector width, stored dtype, date
    <lake>/<encoder_id>/features/*.parquet        media_sha256, modality, vector
    <lake>/<encoder_id>/quarantine/*.parquet      media_sha256, modality, reason: media that cannot be encoded

Files appear whole, so a killed pass leaves only finished work. A vector may be in two files (a pass was killed while
files were merged); all copies are the same. The lake may lie in a bucket.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline import storage
from data_pipeline.errors import InputError
from data_pipeline.locations import Location, filesystem_of, locate

FEATURES = "features"
QUARANTINE = "quarantine"
LAKE_FILE = "lake.json"
DTYPES = ("float16", "float32")
MERGED_ROWS = 50_000  # merging stops at this size; fp16 vectors of width 1,024 then make files of about 100 MB
_LIST_ATTEMPTS = 20  # other passes may merge files away between listing and reading

_T = TypeVar("_T")


class FeatureLake:
    """The vectors of one encoder.

    Attributes:
        path: the encoder's folder in the lake.
        encoder_id: its name, which bears a hash of its weights.
        embed_dim: E, width of a vector.
        dtype: as stored, "float16" or "float32".
    """

    def __init__(self, path: str | Location, encoder_id: str) -> None:
        """Open what `create` made.

        Raises:
            InputError: there are no features of this encoder.
        """
        self.path = _encoder_folder(locate(path), encoder_id)
        self.encoder_id = encoder_id
        header = _read_header(self.path / LAKE_FILE, encoder_id)
        self.embed_dim: int = header["embed_dim"]
        self.dtype: str = header["dtype"]

    @classmethod
    def create(cls, path: str | Location, encoder_id: str, embed_dim: int, dtype: str) -> FeatureLake:
        """Open the encoder's folder, making it if there is none; what killed passes left in it is cleared.

        Args:
            path: root of the lake: a folder or its URI.
            encoder_id: the encoder.
            embed_dim: E.
            dtype: "float16" or "float32".

        Raises:
            InputError: the lake holds vectors of another width or dtype under this name.
        """
        if dtype not in DTYPES:
            raise InputError(f"dtype {dtype!r} of the feature lake must be one of {', '.join(DTYPES)}.")
        folder = _encoder_folder(locate(path), encoder_id)
        header_file = folder / LAKE_FILE
        with storage.locked(header_file):
            if not storage.exists(header_file):
                created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
                header = {"encoder_id": encoder_id, "embed_dim": embed_dim, "dtype": dtype, "created": created}
                storage.write_file(header_file, json.dumps(header, indent=1) + "\n")
        for name in (FEATURES, QUARANTINE):
            storage.clear_partials(folder / name)
        lake = cls(path, encoder_id)
        if (lake.embed_dim, lake.dtype) != (embed_dim, dtype):
            raise InputError(
                f"feature lake {folder} holds {lake.dtype} vectors of width {lake.embed_dim}, but {dtype} vectors of "
                f"width {embed_dim} are to be written; use the lake's dtype, or another lake folder."
            )
        return lake

    def known(self) -> set[str]:
        """sha256 of every medium that has a vector."""
        return set(self.modalities())

    def modalities(self) -> dict[str, str]:
        """Modality under which each medium was encoded, by sha256."""
        return _to_dict(self.read_modalities())

    def read_modalities(self) -> pa.Table:
        """`modalities` as columns media_sha256 and modality, in which a medium may be repeated."""
        return self._read_columns(FEATURES, ["media_sha256", "modality"])

    def quarantined(self) -> dict[str, str]:
        """Why a medium could not be encoded, by sha256."""
        return _to_dict(self._read_columns(QUARANTINE, ["media_sha256", "reason"]))

    def find(self, sha256s: Sequence[str]) -> dict[str, int]:
        """Of the media asked for those that have a vector, numbered in the order asked for; repeats are allowed."""
        wanted = dict.fromkeys(sha256s, False)

        def note(table: pa.Table) -> None:
            wanted.update({sha256: True for sha256 in table["media_sha256"].to_pylist() if sha256 in wanted})

        if wanted:
            self._read_all(FEATURES, note, ("media_sha256",))
        return {sha256: row for row, sha256 in enumerate(sha256 for sha256, is_found in wanted.items() if is_found)}

    def fill(self, matrix: np.ndarray, rows: Mapping[str, int]) -> None:
        """Put vectors into their rows of a matrix (N, E), a file of the lake at a time.

        Raises:
            InputError: a medium has no vector any more.
        """
        is_filled = np.zeros(len(matrix), bool)

        def collect(table: pa.Table) -> None:
            places = np.array([rows.get(sha256, -1) for sha256 in table["media_sha256"].to_pylist()], np.int64)
            used = places >= 0
            matrix[places[used]] = _to_matrix(table["vector"], self.embed_dim)[used]
            is_filled[places[used]] = True

        if rows:
            self._read_all(FEATURES, collect)
        if not is_filled[list(rows.values())].all():
            raise InputError(f"vectors vanished from feature lake {self.path} while it was read; run `embed` again.")

    def load(self, sha256s: Sequence[str]) -> tuple[dict[str, int], np.ndarray]:
        """The vectors of the media asked for.

        Args:
            sha256s: media; repeats and media without a vector are allowed.

        Returns:
            index: row of each medium that has a vector, in the order asked for.
            matrix: (N, E) in the stored dtype.
        """
        index = self.find(sha256s)
        matrix = np.empty((len(index), self.embed_dim), self.dtype)
        self.fill(matrix, index)
        return index, matrix

    def write_features(self, sha256s: Sequence[str], modality: str, vectors: np.ndarray) -> None:
        """Add vectors (N, E) of N media as one file."""
        if vectors.shape != (len(sha256s), self.embed_dim):
            raise InputError(
                f"the encoder gave vectors of shape {vectors.shape} for {len(sha256s)} media, but feature lake "
                f"{self.path} holds vectors of width {self.embed_dim}; use another lake folder for another encoder."
            )
        if len(sha256s):
            flat = pa.array(np.ascontiguousarray(vectors, dtype=self.dtype).reshape(-1))
            columns = [
                list(sha256s),
                [modality] * len(sha256s),
                pa.FixedSizeListArray.from_arrays(flat, self.embed_dim),
            ]
            self._write(FEATURES, pa.Table.from_arrays([pa.array(c) for c in columns], schema=self._feature_schema))

    def write_quarantine(self, sha256s: Sequence[str], modality: str, reasons: Sequence[str]) -> None:
        """Add media that cannot be encoded as one file."""
        if len(sha256s):
            columns = {"media_sha256": sha256s, "modality": [modality] * len(sha256s), "reason": reasons}
            self._write(
                QUARANTINE, pa.table({name: list(values) for name, values in columns.items()}, _QUARANTINE_SCHEMA)
            )

    def merge_files(self) -> None:
        """Join small files, so that a lake of many passes stays quick to open. Does nothing to large ones."""
        for kind in (FEATURES, QUARANTINE):
            small = [(file, rows) for file in self._files(kind) if (rows := self._count_rows(file)) < MERGED_ROWS // 2]
            while len(small) > 1:
                group, n_rows = [], 0
                while small and (not group or n_rows + small[0][1] <= MERGED_ROWS):
                    file, rows = small.pop(0)
                    group.append(file)
                    n_rows += rows
                if len(group) > 1:
                    self._merge(kind, group)

    @property
    def _feature_schema(self) -> pa.Schema:
        value = pa.float16() if self.dtype == "float16" else pa.float32()
        return pa.schema(
            [("media_sha256", pa.string()), ("modality", pa.string()), ("vector", pa.list_(value, self.embed_dim))]
        )

    def _schema(self, kind: str) -> pa.Schema:
        return self._feature_schema if kind == FEATURES else _QUARANTINE_SCHEMA

    def _files(self, kind: str) -> list[Location]:
        return storage.list_files(self.path / kind, ".parquet")

    def _merge(self, kind: str, files: Sequence[Location]) -> None:
        try:
            table = pa.concat_tables([self._read(file, kind) for file in files])
        except FileNotFoundError:  # another pass on the same lake is merging them
            return
        merged = self._write(kind, table)
        for file in files:
            if file != merged:
                storage.remove_file(file)

    def _write(self, kind: str, table: pa.Table) -> Location:
        """Write under a name made from the media, so that the same work done twice is one file."""
        name = hashlib.sha256("".join(table["media_sha256"].to_pylist()).encode()).hexdigest()[:24]
        path = self.path / kind / f"part-{name}.parquet"
        with storage.writing_file(path) as stream:
            pq.write_table(table, stream, compression="zstd", write_page_checksum=True)
        return path

    def _read_columns(self, kind: str, columns: list[str]) -> pa.Table:
        tables = [self._schema(kind).empty_table().select(columns)]
        self._read_all(kind, tables.append, columns)
        return pa.concat_tables(tables)

    def _read_all(self, kind: str, visit: Callable[[pa.Table], None], columns: Sequence[str] | None = None) -> None:
        """Visit every file's table once; begin again where another pass merges files meanwhile (visits may repeat)."""
        for attempt in range(_LIST_ATTEMPTS):
            try:
                for file in self._files(kind):
                    visit(self._read(file, kind, columns))
                return
            except FileNotFoundError:
                if attempt == _LIST_ATTEMPTS - 1:
                    raise

    def _read(self, path: Location, kind: str, columns: Sequence[str] | None = None) -> pa.Table:
        filesystem, name = filesystem_of(path)

        def read() -> pa.Table:
            with pq.ParquetFile(name, filesystem=filesystem, page_checksum_verification=True) as file:
                if file.schema_arrow != self._schema(kind):
                    raise _damaged(path, f"its columns are not those of encoder {self.encoder_id!r}")
                return file.read(columns=None if columns is None else list(columns))

        return _guard(path, read)

    def _count_rows(self, path: Location) -> int:
        filesystem, name = filesystem_of(path)
        try:
            return _guard(path, lambda: pq.read_metadata(name, filesystem=filesystem).num_rows)
        except FileNotFoundError:  # merged away by another pass
            return MERGED_ROWS


_QUARANTINE_SCHEMA = pa.schema([("media_sha256", pa.string()), ("modality", pa.string()), ("reason", pa.string())])


def _guard(path: Location, read: Callable[[], _T]) -> _T:
    try:
        return read()
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, " ".join(str(error).split())) from error


def _damaged(path: Location, why: str) -> InputError:
    return InputError(
        f"feature lake file {path} is damaged ({why}); delete it and run `embed` again: only its media are encoded."
    )


def _to_dict(pairs: pa.Table) -> dict[str, str]:
    return dict(zip(*(column.to_pylist() for column in pairs.columns), strict=True))


def _to_matrix(column: pa.ChunkedArray, embed_dim: int) -> np.ndarray:
    """fixed_size_list column to (N, E) in its stored dtype."""
    array = column.combine_chunks()
    chunks = array.chunks if isinstance(array, pa.ChunkedArray) else [array]
    matrices = [chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, embed_dim) for chunk in chunks]
    return matrices[0] if len(matrices) == 1 else np.concatenate(matrices)


def _encoder_folder(path: Location, encoder_id: str) -> Location:
    if not encoder_id or encoder_id in (".", "..") or any(c in "/\\\0" for c in encoder_id):
        raise InputError(f"encoder id {encoder_id!r} cannot name a folder; it must not hold '/' or '\\'.")
    return path.absolute() / encoder_id


def _read_header(path: Location, encoder_id: str) -> dict[str, Any]:
    if not storage.exists(path):
        folders = storage.list_folders(path.parent.parent)
        others = [folder.name for folder in folders if storage.exists(folder / LAKE_FILE)]
        raise InputError(
            f"feature lake {path.parent.parent} has no features of encoder {encoder_id!r} (it has "
            f"{', '.join(others) or 'none'}); run `embed` first, or correct the lake folder or the encoder."
        )
    try:
        header = json.loads(storage.read_bytes(path))
        is_sound = header["embed_dim"] > 0 and header["dtype"] in DTYPES
        found_id = header["encoder_id"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is damaged ({error}); delete the folder {path.parent} and run `embed` again."
        ) from error
    if not is_sound or found_id != encoder_id:
        raise InputError(
            f"{path} describes encoder {found_id!r}, not {encoder_id!r}; delete its folder and run `embed` again."
        )
    return header
