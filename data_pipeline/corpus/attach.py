"""Hash the media that records name, treat those that are absent, and write down what planning asks of each record."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from data_pipeline.corpus.collect import Collected, ShowProgress
from data_pipeline.corpus.digests import DIGEST_BYTES, digest_text, find_first, number_digests
from data_pipeline.corpus.facts import MODALITIES, tabulate_facts, write_facts
from data_pipeline.corpus.parts import (
    Parts,
    facts_file,
    read_rows,
    rows_file,
    run_each,
    tabulate,
    to_records,
    write_rejected,
    write_rows,
)
from data_pipeline.errors import InputError
from data_pipeline.locations import Location
from data_pipeline.media.hashing import HASH_BYTES, MediaJob, hash_media
from data_pipeline.records.schema import ToolRecord
from data_pipeline.sources.reading import Rejected, SourceReading

MissingMedia = Literal["keep", "drop", "error"]
FILES_PER_JOB = 256  # small enough to spread over workers, large enough that a task is worth its start


@dataclass(frozen=True)
class Media:
    """The media of all rows.

    Attributes:
        parts: the rows; paths are spelt as the files are.
        file: int32 per row, the number of its file; -1 = text.
        sha256: uint8 (files, 32); zeros where a file is missing.
        first_row: int64 (files,), the first row that names each.
    """

    parts: Parts
    file: np.ndarray
    sha256: np.ndarray
    first_row: np.ndarray

    @property
    def is_missing(self) -> np.ndarray:
        """Of each file."""
        return np.asarray(~self.sha256.any(axis=1))

    def missing_uris(self) -> Iterator[str]:
        """The paths of the files that are missing, in the order of the rows."""
        for file, places in self.parts.cut(np.sort(self.first_row[self.is_missing])):
            yield from read_rows(file)["media_uri"].take(places).to_pylist()


@dataclass
class Attached:
    """All rows with the hashes of their media, and their facts.

    Attributes:
        parts: the rows that stay.
        media: None where no record has any.
        n_missing_records: records whose medium is missing.
        missing_tools: some tools that records name and the catalogue lacks, sorted.
    """

    parts: Parts
    media: Media | None
    n_missing_records: int = 0
    missing_tools: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class FactsForm:
    """What facts depend on beside the records: the seed of the splits, and the catalogue's tools."""

    seed: int
    tool_ids: tuple[str, ...]

    def find_missing(self, records: Sequence[ToolRecord]) -> set[str]:
        """Tools that records name and the catalogue lacks."""
        named = {tool_id for record in records for tool_id in record.valid_tool_ids + record.candidate_tool_ids}
        return named - set(self.tool_ids)

    def write(self, file: Location, records: Sequence[ToolRecord]) -> None:
        """Write the facts of a part."""
        numbers = {tool_id: number for number, tool_id in enumerate(self.tool_ids)}
        write_facts(file, tabulate_facts(records, self.seed, numbers))


@dataclass(frozen=True)
class _Job:
    """One part. `sha256` has 32 bytes a row, `is_conflict` one; both are empty where no record has a medium."""

    folder: Location
    name: str
    new_name: str
    sha256: bytes
    is_conflict: bytes
    drops_missing: bool
    resplit: bool
    form: FactsForm


@dataclass(frozen=True)
class _Done:
    name: str
    size: int
    rejected: Location
    reasons: Counter[str]
    missing_tools: list[str]


def attach_media(
    collected: Collected,
    reading: SourceReading,
    missing_media: MissingMedia,
    resplit: bool,
    form: FactsForm,
    show: ShowProgress,
) -> Attached:
    """Hash the media that are there; treat records whose file is absent as the option says.

    Args:
        collected: the records; what is rejected here is added there.
        reading: their source; what is mended is counted there.
        missing_media: what becomes of records whose file is absent.
        resplit: forget the splits that the source prescribes; before questions are joined, as one may stand in both
            prescribed splits.
        form: of the facts.
        show: is told how many media files are hashed.

    Raises:
        InputError: media are missing and may not be.
    """
    media = _hash(collected, reading, show) if any(collected.has_media) else None
    parts = collected.parts if media is None else media.parts
    n_missing_records = 0
    is_conflict = np.zeros(0, bool)
    if media is not None:
        n_missing_records = int((media.is_missing[media.file] & (media.file >= 0)).sum())
        if missing_media == "error" and n_missing_records:
            raise InputError(
                f"{media.is_missing.sum()} of {len(media.sha256)} media files are missing or unreadable below "
                f"media_root {reading.media_root}, the first is {next(media.missing_uris())!r}; fetch them, or set "
                "missing_media to keep or drop."
            )
        is_conflict = _find_conflicts(media)

    def jobs() -> Iterator[_Job]:
        for part, name in enumerate(parts.names):
            sha256, conflicts = b"", b""
            if media is not None and collected.has_media[part]:
                rows = slice(parts.starts[part], parts.starts[part + 1])
                hashes = media.sha256[media.file[rows]]
                hashes[media.file[rows] < 0] = 0
                sha256, conflicts = hashes.tobytes(), is_conflict[rows].tobytes()
            is_changed = bool(sha256) or resplit
            new_name = f"attached-{part:06d}" if is_changed else name
            yield _Job(parts.folder, name, new_name, sha256, conflicts, missing_media == "drop", resplit, form)

    names, sizes, missing_tools = [], [], set[str]()
    for done in run_each(_attach, jobs(), parts.is_small):
        collected.rejected.add(done.rejected, done.reasons)
        missing_tools |= set(done.missing_tools)
        if done.size:
            names.append(done.name)
            sizes.append(done.size)
    new_parts = Parts(parts.folder, tuple(names), tuple(sizes))
    return Attached(new_parts, media, n_missing_records, sorted(missing_tools))


def _attach(job: _Job) -> _Done:
    """Runs as a task on one part."""
    records = to_records(read_rows(rows_file(job.folder, job.name)))
    kept, rejected = records, list[Rejected]()
    if job.sha256:
        kept = []
        for number, (record, is_conflict) in enumerate(zip(records, job.is_conflict, strict=True)):
            digest = job.sha256[HASH_BYTES * number : HASH_BYTES * (number + 1)]
            sha256 = digest.hex() if any(digest) else ""
            where = f"{record.record_id}: {record.media_uri}"
            if job.drops_missing and record.has_media and not sha256:
                rejected.append(Rejected("the media file is missing", where))
            elif is_conflict:
                reason = "the same file serves as two modalities; store the sound track as a file of its own"
                rejected.append(Rejected(reason, where))
            else:
                kept.append(replace(record, media_sha256=sha256))
    if job.resplit:
        kept = [replace(record, split="") for record in kept]
    rejected_file = job.folder / f"{job.new_name}-attached.rejected.jsonl"
    reasons = write_rejected(rejected_file, rejected)
    missing_tools = job.form.find_missing(kept)
    if kept and not missing_tools:
        if job.new_name != job.name:
            write_rows(rows_file(job.folder, job.new_name), tabulate(kept))
        job.form.write(facts_file(job.folder, job.new_name), kept)
    return _Done(job.new_name, len(kept), rejected_file, reasons, sorted(missing_tools)[:5])


def _hash(collected: Collected, reading: SourceReading, show: ShowProgress) -> Media:
    """Hash every file that is named, once; where there is no media root, all are missing."""
    root = None if reading.media_root is None else reading.media_root.absolute()
    parts = _spell_as_files(collected, reading, root) if isinstance(root, Path) else collected.parts
    digests = np.zeros((parts.n_rows, DIGEST_BYTES // 8), np.uint64)
    for part in np.flatnonzero(collected.has_media).tolist():
        uris = read_rows(parts.rows(part))["media_uri"].to_pylist()
        joined = b"".join(digest_text(uri) if uri else bytes(DIGEST_BYTES) for uri in uris)
        digests[parts.starts[part] : parts.starts[part + 1]] = np.frombuffer(joined, ">u8").reshape(-1, 2)
    file, n_files = number_digests(digests)
    del digests
    first_row = find_first(file, n_files)
    sha256 = np.zeros((n_files, HASH_BYTES), np.uint8)
    if root is not None:
        rows, n_done = np.sort(first_row), 0
        jobs = (
            MediaJob(
                root,
                tuple(read_rows(rows_of_part)["media_uri"].take(places[start : start + FILES_PER_JOB]).to_pylist()),
            )
            for rows_of_part, places in parts.cut(rows)
            for start in range(0, len(places), FILES_PER_JOB)
        )
        for hashes in run_each(hash_media, jobs, n_files <= FILES_PER_JOB):
            done = np.frombuffer(hashes, np.uint8).reshape(-1, HASH_BYTES)
            sha256[file[rows[n_done : n_done + len(done)]]] = done
            for number in range(n_done + 1, n_done + len(done) + 1):
                show(number, n_files, "media files")
            n_done += len(done)
    return Media(parts, file, sha256, first_row)


def _find_conflicts(media: Media) -> np.ndarray:
    """Mask of the rows whose medium an earlier row uses as another modality: the lake has one vector per content."""
    content, n_contents = number_digests(
        np.ascontiguousarray(media.sha256[:, :DIGEST_BYTES]).view(">u8").astype(np.uint64)
    )
    of_row = np.where(media.file >= 0, content[media.file], -1)
    modality = np.concatenate(
        [
            np.array(
                [MODALITIES.index(name) for name in read_rows(media.parts.rows(part))["modality"].to_pylist()], np.int8
            )
            for part in range(len(media.parts))
        ]
    )
    of_content = modality[find_first(of_row, n_contents)]
    return (of_row >= 0) & (of_content[of_row] != modality) if n_contents else np.zeros(len(of_row), bool)


def _spell_as_files(collected: Collected, reading: SourceReading, root: Path) -> Parts:
    """Rows whose paths exist only in another Unicode spelling, spelt so; distinct paths are counted as repairs."""
    parts, names = collected.parts, list(collected.parts.names)
    spellings = Spellings(root)
    mended: list[bytes] = []
    for part in np.flatnonzero(collected.has_media).tolist():
        table = read_rows(parts.rows(part))
        column = table.column_names.index("media_uri")
        uris = table["media_uri"].to_pylist()
        spelt = spellings.find(uris)
        if spelt:
            mended += [digest_text(uri) for uri in spelt]
            names[part] = f"spelt-{part:06d}"
            table = table.set_column(column, table.schema.field(column), [[spelt.get(uri, uri) for uri in uris]])
            write_rows(rows_file(parts.folder, names[part]), table)
    if mended:
        n_mended = number_digests(np.frombuffer(b"".join(mended), ">u8").astype(np.uint64).reshape(-1, 2))[1]
        reading.repairs["media path in another Unicode spelling than the file's name"] += n_mended
    return replace(parts, names=tuple(names))


class Spellings:
    """How files below a folder are spelt, where their names are not ASCII; listings are read once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._listed: dict[Path, dict[str, str]] = {}

    def find(self, uris: Sequence[str]) -> dict[str, str]:
        """Paths that exist only in another Unicode spelling (NFC for NFD or the other way): path -> that."""
        spelt = {}
        for uri in dict.fromkeys(uris):
            if uri.isascii():
                continue
            parts: list[str] = []
            for part in uri.split("/"):
                parts.append(self._find_name(self._root.joinpath(*parts), part))
            if "/".join(parts) != uri and self._root.joinpath(*parts).is_file():
                spelt[uri] = "/".join(parts)
        return spelt

    def _find_name(self, folder: Path, name: str) -> str:
        if os.path.lexists(folder / name):
            return name
        if folder not in self._listed:
            try:
                names = sorted(os.listdir(folder))
            except OSError:  # no such folder, or not readable: its files count as missing
                names = []
            self._listed[folder] = {unicodedata.normalize("NFC", n): n for n in names if not n.isascii()}
        return self._listed[folder].get(unicodedata.normalize("NFC", name), name)
