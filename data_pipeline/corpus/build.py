"""Build a corpus: read, validate, hash media, dedupe, split, audit for leaks, write (DESIGN 4.3).

The result depends on the source, the options and the seed alone, not on how many workers there are: rows keep the
source's order, and every choice is a hash of (seed, content).
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import Field

from data_pipeline import storage
from data_pipeline.corpus.clean import Cleaning, MissingMedia, ShowProgress, clean_records
from data_pipeline.corpus.files import FORMAT, MANIFEST_FILE, Corpus, find_missing_tools, hash_rows, write_shards
from data_pipeline.corpus.leaks import LeakAudit, audit_leaks
from data_pipeline.corpus.splits import assign_splits
from data_pipeline.corpus.stats import count_dialogues, count_split, count_tools
from data_pipeline.errors import InputError
from data_pipeline.locations import Location
from data_pipeline.records.catalog import CATALOG_FILE
from data_pipeline.records.schema import SCHEMA_VERSION, SPLITS, ToolRecord
from data_pipeline.sources.read import SourceName, SourceOptions, unite_sources
from data_pipeline.sources.reading import Rejected, SourceReading

__all__ = ["Corpus", "CorpusSummary", "PrepareOptions", "build_corpus"]

logger = logging.getLogger(__name__)

REJECTED_FILE = "rejected.jsonl"
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
        cleaning = clean_records(reading, options.missing_media, options.resplit, show)
        if not cleaning.records:
            raise InputError(f"source {reading.name!r} gave no usable record ({_reasons(cleaning.rejected)}).")
        missing_tools = find_missing_tools(cleaning.records, reading.catalog)
        if missing_tools:
            raise InputError(
                f"records name tools that the catalogue lacks: {', '.join(missing_tools[:5])}; add them to it."
            )
        by_split = _split(cleaning.records, options, seed)
        audit = audit_leaks(by_split["train"] + by_split["val"], by_split["test"], _count_copies(by_split, reading))
        if options.leak == "drop":
            by_split["test"] = [record for record in by_split["test"] if record.record_id not in audit.leaked_ids]
        val_audit = audit_leaks(by_split["train"], by_split["val"])
        manifest = _build_manifest(options, seed, reading, cleaning, by_split, audit, val_audit, partial)
        _write_corpus(partial, manifest, reading, cleaning, by_split, options.shard_rows)
    return CorpusSummary(path=out_dir.absolute(), data_hash=manifest["data_hash"], manifest=manifest)


def _check_replaceable(folder: Location) -> None:
    """Refuse to put a corpus in the place of anything else."""
    found = storage.open_folder(folder)
    if not storage.exists(found / MANIFEST_FILE) and not storage.is_empty(found):
        raise InputError(f"{folder} exists and is not a corpus; name another folder or remove it.")


def _split(records: Sequence[ToolRecord], options: PrepareOptions, seed: int) -> dict[str, list[ToolRecord]]:
    by_split: dict[str, list[ToolRecord]] = {split: [] for split in SPLITS}
    splits = assign_splits(records, options.test_frac, options.val_frac, seed, options.unseen_tools)
    for record, split in zip(records, splits, strict=True):
        by_split[split].append(replace(record, split=split))
    return by_split


def _count_copies(by_split: dict[str, list[ToolRecord]], reading: SourceReading) -> dict[str, int]:
    """How often the released test file holds each test record's question."""
    merged = reading.merged_source_indexes
    return {
        record.record_id: 1 + len(merged[record.source_index])
        for record in by_split["test"]
        if record.source_index in merged
    }


def _missing_but_kept(cleaning: Cleaning) -> Iterator[Rejected]:
    """Files that are missing, where their questions stay: nothing else names them all."""
    kept = {record.media_uri for record in cleaning.records}
    for uri in cleaning.missing_media:
        if uri in kept:
            yield Rejected("the media file is missing; its questions are kept", uri)


def _reasons(rejected: Sequence[Rejected]) -> str:
    reasons = Counter(item.reason for item in rejected).most_common(3)
    return "; ".join(f"{count} x {reason}" for reason, count in reasons) or "the source is empty"


def _build_manifest(
    options: PrepareOptions,
    seed: int,
    reading: SourceReading,
    cleaning: Cleaning,
    by_split: dict[str, list[ToolRecord]],
    audit: LeakAudit,
    val_audit: LeakAudit,
    partial: Location,
) -> dict[str, Any]:
    """Everything but the list of files. Holds no time stamp: the same input gives the same manifest."""
    media_root = None
    if reading.media_root is not None:
        media_root = "." if reading.media_root == partial else str(reading.media_root.absolute())
    return {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "source": reading.name,
        "licences": reading.licences,
        "options": options.model_dump(mode="json") | {"seed": seed},
        "data_hash": hash_rows((record for split in SPLITS for record in by_split[split]), reading.catalog),
        "catalog_hash": reading.catalog.content_hash,
        "media_root": media_root,
        "counts": {split: count_split(by_split[split]) for split in SPLITS},
        "tools": count_tools(by_split, reading.catalog),
        "dialogues": count_dialogues(by_split),
        "leaks": {
            "test_vs_train_and_val": audit.by_modality,
            "val_vs_train": val_audit.by_modality,
            "policy": options.leak,
            "dropped": len(audit.leaked_ids) if options.leak == "drop" else 0,
            "drop_rule": DROP_RULE,
        },
        "missing_media": {
            "files": len(cleaning.missing_media),
            "records": cleaning.n_missing_records,
            "policy": options.missing_media,
        },
        "duplicates_merged": cleaning.n_duplicates,
        "merged_source_indexes": {str(index): others for index, others in reading.merged_source_indexes.items()},
        "repairs": {kind: count for kind, count in sorted(reading.repairs.items()) if count},
        "rejected": dict(Counter(item.reason for item in cleaning.rejected).most_common()),
    }


def _write_corpus(
    partial: Location,
    manifest: dict[str, Any],
    reading: SourceReading,
    cleaning: Cleaning,
    by_split: dict[str, list[ToolRecord]],
    shard_rows: int,
) -> None:
    from data_pipeline.corpus.report import write_report  # lazily: it imports matplotlib

    manifest["files"] = write_shards(partial, by_split, shard_rows)
    reading.catalog.save_jsonl(partial / CATALOG_FILE)
    rejected = (*cleaning.rejected, *_missing_but_kept(cleaning))
    lines = [json.dumps({"where": item.where, "reason": item.reason}, ensure_ascii=False) for item in rejected]
    storage.write_file(partial / REJECTED_FILE, "".join(line + "\n" for line in lines))
    with storage.staged_locally(partial) as folder:
        write_report(folder, manifest, by_split, cleaning.missing_media)
    storage.write_file(partial / MANIFEST_FILE, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    logger.info("corpus written source=%s data_hash=%s", reading.name, manifest["data_hash"][:12])
