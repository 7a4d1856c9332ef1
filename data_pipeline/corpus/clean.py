"""From a source to distinct records: read them, hash their media, join those of one question."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from data_pipeline.errors import InputError
from data_pipeline.media.hashing import hash_media
from data_pipeline.records.keys import question_keys
from data_pipeline.records.schema import SPLITS, ToolRecord
from data_pipeline.sources.reading import Rejected, SourceReading, merge_records

MissingMedia = Literal["keep", "drop", "error"]
ShowProgress = Callable[[int, int | None, str], None]  # done, of how many where that is known, of what


@dataclass
class Cleaning:
    """Records on their way into the corpus, and what was found wrong with the others.

    Attributes:
        records: distinct questions, in the sources' order.
        rejected: what is not among them, and why.
        n_duplicates: records that were joined to an earlier one.
        n_missing_records: records whose medium is missing.
        missing_media: their files, in order.
    """

    records: list[ToolRecord]
    rejected: list[Rejected]
    n_duplicates: int = 0
    n_missing_records: int = 0
    missing_media: list[str] = field(default_factory=list)


def clean_records(
    reading: SourceReading,
    missing_media: MissingMedia,
    resplit: bool,
    show: ShowProgress = lambda done, total, unit: None,
) -> Cleaning:
    """Read a source to its end.

    Args:
        reading: the source; what is mended here is counted there.
        missing_media: what becomes of records whose file is absent.
        resplit: forget the splits that the source prescribes.
        show: is told how many records are read and how many media files are hashed.

    Raises:
        InputError: a record id is used twice, or media are missing and may not be.
    """
    cleaning = _read_all(reading, show)
    _attach_media_hashes(cleaning, reading, missing_media, show)
    if resplit:  # before questions are joined: one may stand in both prescribed splits
        cleaning.records = [replace(record, split="") for record in cleaning.records]
    _join_questions(cleaning, reading)
    return cleaning


def _read_all(reading: SourceReading, show: ShowProgress) -> Cleaning:
    records, rejected, ids = [], [], set()
    for number, item in enumerate(reading, start=1):
        show(number, reading.n_expected, "records")
        if isinstance(item, Rejected):
            rejected.append(item)
        elif item.record_id in ids:
            raise InputError(f"record id {item.record_id!r} of source {reading.name!r} is used twice; make it unique.")
        else:
            ids.add(item.record_id)
            records.append(item)
    return Cleaning(records, rejected)


def _attach_media_hashes(
    cleaning: Cleaning, reading: SourceReading, missing_media: MissingMedia, show: ShowProgress
) -> None:
    """Hash the media that are there; treat records whose file is absent as the option says."""
    root = None if reading.media_root is None else reading.media_root.absolute()
    uris = list(dict.fromkeys(record.media_uri for record in cleaning.records if record.has_media))
    if isinstance(root, Path):
        spelt = find_spellings(root, uris)
        if spelt:
            reading.repairs["media path in another Unicode spelling than the file's name"] += len(spelt)
            cleaning.records = [
                replace(record, media_uri=spelt.get(record.media_uri, record.media_uri)) for record in cleaning.records
            ]
            uris = list(dict.fromkeys(spelt.get(uri, uri) for uri in uris))
    hashes = dict.fromkeys(uris, "")
    if root is not None:
        for number, (uri, sha256) in enumerate(hash_media(root, uris), start=1):
            hashes[uri] = sha256
            show(number, len(uris), "media files")
    cleaning.missing_media = [uri for uri in uris if not hashes[uri]]
    if cleaning.missing_media and missing_media == "error":
        raise InputError(
            f"{len(cleaning.missing_media)} of {len(uris)} media files are missing or unreadable below media_root "
            f"{reading.media_root}, the first is {cleaning.missing_media[0]!r}; fetch them, or set missing_media to "
            "keep or drop."
        )
    kept, modality_by_sha256 = [], {}
    for record in cleaning.records:
        sha256 = hashes.get(record.media_uri, "")
        if record.has_media and not sha256:
            cleaning.n_missing_records += 1
            if missing_media == "drop":
                cleaning.rejected.append(
                    Rejected("the media file is missing", f"{record.record_id}: {record.media_uri}")
                )
                continue
        elif sha256 and modality_by_sha256.setdefault(sha256, record.modality) is not record.modality:
            # the feature lake holds one vector per content hash
            reason = "the same file serves as two modalities; store the sound track as a file of its own"
            cleaning.rejected.append(Rejected(reason, f"{record.record_id}: {record.media_uri}"))
            continue
        kept.append(replace(record, media_sha256=sha256))
    cleaning.records = kept


def find_spellings(root: Path, uris: Sequence[str]) -> dict[str, str]:
    """Paths below `root` that exist only in another Unicode spelling (NFC for NFD or the other way): path -> that."""
    listed: dict[Path, dict[str, str]] = {}

    def find(folder: Path, part: str) -> str:
        if os.path.lexists(folder / part):
            return part
        if folder not in listed:
            try:
                names = sorted(os.listdir(folder))
            except OSError:  # no such folder, or not readable: its files count as missing
                names = []
            listed[folder] = {unicodedata.normalize("NFC", name): name for name in names if not name.isascii()}
        return listed[folder].get(unicodedata.normalize("NFC", part), part)

    spelt = {}
    for uri in uris:
        if uri.isascii():
            continue
        parts: list[str] = []
        for part in uri.split("/"):
            parts.append(find(root.joinpath(*parts), part))
        if "/".join(parts) != uri and root.joinpath(*parts).is_file():
            spelt[uri] = "/".join(parts)
    return spelt


def _join_questions(cleaning: Cleaning, reading: SourceReading) -> None:
    """Join records of one question within one split; media are compared by content where it is known.

    A question without a split is joined to one of another source that prescribes its own (training, where several are).
    """
    prescribed: dict[tuple[str, str], str] = {}
    for split in reversed(SPLITS):  # training last, so that it wins
        prescribed |= {question_keys(record)[0]: split for record in cleaning.records if record.split == split}
    records: dict[tuple[str, tuple[str, str]], ToolRecord] = {}
    for record in cleaning.records:
        question = question_keys(record)[0]
        key = (record.split or prescribed.get(question, ""), question)
        first = records.get(key)
        if first is None:
            records[key] = record
            continue
        cleaning.n_duplicates += 1
        if record.split and not first.split:
            first, record = record, first
        records[key] = merge_records(first, record)
        if first.source_index is not None and record.source_index is not None:
            merged = reading.merged_source_indexes
            merged.setdefault(first.source_index, []).extend(
                [record.source_index, *merged.pop(record.source_index, ())]
            )
    cleaning.records = list(records.values())
