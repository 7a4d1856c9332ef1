"""When two records are about the same thing: one answer for splitting, joining and auditing, over all sources."""

from __future__ import annotations

import unicodedata

from data_pipeline.records.schema import ToolRecord
from data_pipeline.records.text import words_key


def media_keys(record: ToolRecord) -> tuple[str, ...]:
    """What a record's medium is known by, the surest first: its content, where it is known, and its path; () = none."""
    if not record.has_media:
        return ()
    by_path = f"{record.modality.value}:{unicodedata.normalize('NFC', record.media_uri)}"
    return (record.media_sha256, by_path) if record.media_sha256 else (by_path,)


def question_keys(record: ToolRecord) -> tuple[tuple[str, str], ...]:
    """(medium, words) under which a record's question is known, the surest first.

    A dialogue's prompt and a question in the same words are two things.
    """
    media = media_keys(record) or ("dialogue" if record.is_dialogue else "text",)
    words = words_key(record.instruction)
    return tuple((medium, words) for medium in media)


def group_key(record: ToolRecord) -> str:
    """What must stay on one side of a split: the medium, or the words of a question without one."""
    media = media_keys(record)
    return media[0] if media else "text:" + words_key(record.instruction)
