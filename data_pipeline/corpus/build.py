"""Build a corpus: read, validate, hash media, dedupe, split, audit for leaks, write (DESIGN 4.3).

This process never holds the records: they pass through files of some thousand rows, in Ray tasks where there are many,
and it keeps some 50 bytes of each (`facts.py`).

The result depends on the source, the options and the seed alone, not on how many workers there are: rows keep the
source's order, and every choice is a hash of (seed, content).
"""

from __future__ import annotations

import itertools
import json
import logging
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field

from data_pipeline import storage
from data_pipeline.corpus.clean import Cleaning, MissingMedia, ShowProgress, clean_records
from data_pipeline.corpus.facts import NO_SPLIT, Facts, read_column, split_code
from data_pipeline.corpus.files import FORMAT, MANIFEST_FILE, Corpus
from data_pipeline.corpus.leaks import count_leaks, find_leaks
from data_pipeline.corpus.parts import Rejections, render_rejected
from data_pipeline.corpus.shards import write_shards
from data_pipeline.corpus.splits import assign_splits
from data_pipeline.corpus.stats import count_dialogues, count_splits, count_tools
from data_pipeline.errors import InputError
from data_pipeline.locations import Location
from data_pipeline.records.catalog import CATALOG_FILE
from data_pipeline.records.schema import SCHEMA_VERSION, SPLITS
from data_pipeline.sources.read import SourceName, SourceOptions, unite_sources
from data_pipeline.sources.reading import SourceReading

__all__ = ["Corpus", "CorpusSummary", "PrepareOptions", "build_corpus"]

logger = logging.getLogger(__name__)

REJECTED_FILE = "rejected.jsonl"
WORK_FOLDER = ".work"  # gone when the corpus is there
DROP_RULE = "test records with an exact (instruction, medium) pair or a medium of train or val"


class PrepareOptions(SourceOptions):
    """What `prepare` builds: a first source, further ones, and what is made of their records."""

    source: SourceName = "toolmm-mini"
    also: list[SourceOptions] = Field(default_factory=list)  # further sources; at most one of all may have media
    test_frac: float = Field(
        default=0.2, gt=0, lt=1
    )  # of each modality's questions, where the source prescribes no test split
    resplit: bool = (
        False  # ignore the splits that the source prescribes: 8:2 so that no test tool is unseen in training
    )
    val_frac: float = Field(
        default=0.05, ge=0, lt=1
    )  # of the training questions, where the source prescribes no val split
    unseen_tools: float = Field(
        default=0.0, ge=0, lt=1
    )  # share of the tools that only test asks for; where no source prescribes splits
    leak: Literal["report", "drop"] = "report"  # drop = remove test questions whose pair or medium is in train or val
    missing_media: MissingMedia = "keep"  # records whose file is absent: keep = without a hash
    shard_rows: int = Field(default=10_000, ge=1)  # rows of one Parquet file

    @property
    def sources(self) -> list[SourceOptions]:
        """All sources, the first one first."""
        first = self.model_dump(include=set(SourceOptions.model_fields))
        return [SourceOptions.model_validate(first), *self.also]


@dataclass(frozen=True)
class CorpusSummary:
    """What was built. `manifest` is that of the corpus."""

    path: Location
    data_hash: str
    manifest: dict[str, Any]


def build_corpus(
    options: PrepareOptions, out_dir: Location, seed: int = 0, show: ShowProgress = lambda done, total, unit: None
) -> CorpusSummary:
    """Build the corpus at `out_dir`, replacing a corpus that is there; on an error nothing is left behind.

    Args:
        options: what to build.
        out_dir: the corpus folder; in a bucket, or on a file system that every Ray node shares.
        seed: of the split and of what is generated.
        show: is told how many records are read and how many media files are hashed.

    Raises:
        InputError: bad source, or no usable record; `out_dir` exists and is no corpus.
    """
    _check_replaceable(out_dir.absolute())
    with storage.replacing_folder(out_dir.absolute()) as partial:
        reading = unite_sources(options.sources, partial, seed)
        work = partial / WORK_FOLDER
        cleaning = clean_records(reading, work, options.missing_media, options.resplit, seed, show)
        if not cleaning.parts.n_rows:
            raise InputError(f"source {reading.name!r} gave no usable record ({_reasons(cleaning.rejected)}).")
        if cleaning.facts is None:
            raise InputError(
                f"records name tools that the catalogue lacks: {', '.join(cleaning.missing_tools[:5])}; add them to it."
            )
        facts = cleaning.facts
        facts.split = assign_splits(facts, options.test_frac, options.val_frac, seed, options.unseen_tools)
        leaks = _audit(cleaning, facts, reading, options.leak)
        manifest = _build_manifest(options, seed, reading, cleaning, facts, leaks, partial)
        _write_corpus(partial, manifest, reading, cleaning, facts, options.shard_rows)
        storage.remove_folder(work)
    return CorpusSummary(path=out_dir.absolute(), data_hash=manifest["data_hash"], manifest=manifest)


def _check_replaceable(folder: Location) -> None:
    """Refuse to put a corpus in the place of anything else."""
    found = storage.open_folder(folder)
    if not storage.exists(found / MANIFEST_FILE) and not storage.is_empty(found):
        raise InputError(f"{folder} exists and is not a corpus; name another folder or remove it.")


def _audit(cleaning: Cleaning, facts: Facts, reading: SourceReading, policy: str) -> dict[str, Any]:
    """The manifest's section on leaks. Test questions that leak lose their split, where they are to be dropped."""
    train, val, test = (facts.split == split_code(split) for split in SPLITS)
    leaks, val_leaks = find_leaks(facts, (train | val, test), (train, val))
    by_modality = count_leaks(facts, leaks, test, _count_copies(cleaning, len(facts), reading))
    if policy == "drop":
        facts.split[leaks.is_leaked] = NO_SPLIT
    once = np.ones(len(facts), np.int64)
    return {
        "test_vs_train_and_val": by_modality,
        "val_vs_train": count_leaks(facts, val_leaks, val, once),
        "policy": policy,
        "dropped": int(leaks.is_leaked.sum()) if policy == "drop" else 0,
        "drop_rule": DROP_RULE,
    }


def _count_copies(cleaning: Cleaning, n_rows: int, reading: SourceReading) -> np.ndarray:
    """How often the released test file holds each record's question."""
    copies = np.ones(n_rows, np.int64)
    if reading.merged_source_indexes:
        index = np.concatenate([column.to_numpy() for column in read_column(cleaning.parts.facts, "source_index")])
        for row in np.flatnonzero(np.isin(index, list(reading.merged_source_indexes))).tolist():
            copies[row] += len(reading.merged_source_indexes[int(index[row])])
    return copies


def _reasons(rejected: Rejections) -> str:
    reasons = rejected.reasons.most_common(3)
    return "; ".join(f"{count} x {reason}" for reason, count in reasons) or "the source is empty"


def _build_manifest(
    options: PrepareOptions,
    seed: int,
    reading: SourceReading,
    cleaning: Cleaning,
    facts: Facts,
    leaks: dict[str, Any],
    partial: Location,
) -> dict[str, Any]:
    """Everything but what the files hold. Has no time stamp: the same input gives the same manifest."""
    media_root = None
    if reading.media_root is not None:
        media_root = "." if reading.media_root == partial else str(reading.media_root.absolute())
    return {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "source": reading.name,
        "licences": reading.licences,
        "options": options.model_dump(mode="json") | {"seed": seed},
        "data_hash": "",  # known when the files are written
        "catalog_hash": reading.catalog.content_hash,
        "media_root": media_root,
        "counts": count_splits(facts),
        "tools": count_tools(facts, reading.catalog),
        "dialogues": count_dialogues(facts),
        "leaks": leaks,
        "missing_media": {
            "files": cleaning.n_missing_media,
            "records": cleaning.n_missing_records,
            "policy": options.missing_media,
        },
        "duplicates_merged": cleaning.n_duplicates,
        "merged_source_indexes": {str(index): others for index, others in reading.merged_source_indexes.items()},
        "repairs": {kind: count for kind, count in sorted(reading.repairs.items()) if count},
        "rejected": dict(cleaning.rejected.reasons.most_common()),
    }


def _write_corpus(
    partial: Location,
    manifest: dict[str, Any],
    reading: SourceReading,
    cleaning: Cleaning,
    facts: Facts,
    shard_rows: int,
) -> None:
    from data_pipeline.corpus.report import SHOWN_MISSING_MEDIA, write_report  # lazily: it imports matplotlib

    manifest["data_hash"], manifest["files"] = write_shards(
        partial, cleaning.parts, facts.split, reading.catalog, shard_rows
    )
    reading.catalog.save_jsonl(partial / CATALOG_FILE)
    with storage.writing_file(partial / REJECTED_FILE) as stream:
        for file in cleaning.rejected.files:
            stream.write(storage.read_bytes(file))
        for item in cleaning.missing_but_kept():
            stream.write(render_rejected(item).encode())
    missing = () if cleaning.media is None else itertools.islice(cleaning.media.missing_uris(), SHOWN_MISSING_MEDIA)
    with storage.staged_locally(partial) as folder:
        write_report(folder, manifest, facts, reading.catalog, list(missing))
    storage.write_file(partial / MANIFEST_FILE, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    logger.info("corpus written source=%s data_hash=%s", reading.name, manifest["data_hash"][:12])
