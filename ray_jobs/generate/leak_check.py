"""Whether a test corpus already holds what was generated, by the rules with which splits are made and audited."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from data_pipeline import storage
from data_pipeline.corpus.files import MANIFEST_FILE, Corpus
from data_pipeline.corpus.leaks import audit_leaks
from data_pipeline.errors import InputError
from data_pipeline.instruct.captioned_media import find_modality
from data_pipeline.instruct.cases import strip_dialogue, text_record
from data_pipeline.records.schema import Modality, ToolRecord
from data_pipeline.sources.reading import relative_media_uri
from data_pipeline.sources.rows import read_rows


def read_test_questions(path: Path) -> list[ToolRecord]:
    """The questions that nothing may be like.

    Args:
        path: a prepared corpus, of which the test split counts; or a file of rows with `instruction`, whose `media`, if
            any, lie below its folder.

    Raises:
        InputError: neither of them, or nothing in it.
    """
    if storage.exists(path / MANIFEST_FILE):
        records = [_strip(record) for record in Corpus.open(path).records("test")]
    elif path.is_file():
        records = [_read(row.content, f"{path}, {row.place}", path.parent) for row in read_rows(path)]
    else:
        raise InputError(
            f"generate.leak_check: {path} is neither a prepared corpus nor a file of rows; give the test data."
        )
    if not records:
        raise InputError(f"generate.leak_check: {path} holds no test question; give the test data.")
    return records


def find_leaks(test: Sequence[ToolRecord], generated: Sequence[ToolRecord]) -> list[str]:
    """The `check_leak` of each generated record: "question" = these words about this medium, "medium" = that alone."""
    audit = audit_leaks(test, generated)
    questions, media = set(audit.exact_pairs), set(audit.shared_media)
    return [
        "question" if record.record_id in questions else "medium" if record.record_id in media else "none"
        for record in generated
    ]


def _strip(record: ToolRecord) -> ToolRecord:
    """Of a dialogue the user's new words: its whole prompt names files that no other one names."""
    if not record.is_dialogue:
        return record
    return text_record(record.record_id, strip_dialogue(record.instruction))


def _read(content: object, where: str, folder: Path) -> ToolRecord:
    words = content.get("instruction") if isinstance(content, dict) else None
    if not isinstance(words, str) or not words.strip():
        raise InputError(f"generate.leak_check: {where} has no instruction; give rows with the words of a question.")
    assert isinstance(content, dict)
    record = text_record(where, strip_dialogue(words))
    media = content.get("media")
    modality = find_modality(media) if isinstance(media, str) else None
    if modality is None or modality is Modality.TEXT:
        return record
    uri = relative_media_uri(str(media))
    sha256 = storage.hash_file(folder / uri) if (folder / uri).is_file() else ""
    return replace(record, modality=modality, media_uri=uri, media_sha256=sha256)
