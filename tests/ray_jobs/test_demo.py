"""Which six questions the demo asks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import InputError
from data_pipeline.records.schema import AmbiguityType, Modality, ToolRecord
from ray_jobs.demo import choose_questions

MEDIA_ROOT = Path("/media-root")
PICTURE_TOOLS = ("dehaze", "deblur", "upscale")
SOUND_TOOLS = ("denoise", "pitch", "tempo")


def build_record(name: str, modality: Modality, tool_ids: tuple[str, ...], **changes: Any) -> ToolRecord:
    uri = "" if modality is Modality.TEXT else f"media/{name}"
    return ToolRecord(name, "test", modality, f"words of {name}", tool_ids, uri, **changes)


def ambiguous(name: str, modality: Modality, tool_id: str, candidates: tuple[str, ...]) -> ToolRecord:
    return build_record(name, modality, (tool_id,), ambiguity_type=AmbiguityType.QUALITY, candidate_tool_ids=candidates)


RECORDS = [
    build_record("unsolvable", Modality.TEXT, ("unknown",)),
    build_record("plain picture", Modality.IMAGE, ("dehaze",), candidate_tool_ids=("dehaze",)),
    ambiguous("other words", Modality.IMAGE, "edges", ("edges", "lines", "depth")),
    ambiguous("hazy", Modality.IMAGE, "dehaze", PICTURE_TOOLS),
    ambiguous("hazy again", Modality.IMAGE, "dehaze", PICTURE_TOOLS),
    ambiguous("blurred", Modality.IMAGE, "deblur", tuple(reversed(PICTURE_TOOLS))),
    ambiguous("sung", Modality.AUDIO, "pitch", SOUND_TOOLS),
    ambiguous("drummed", Modality.AUDIO, "tempo", SOUND_TOOLS),
    build_record("plain text", Modality.TEXT, ("t5", "bart")),
]


def test_same_words_with_different_media_then_a_text_and_one_that_nothing_solves() -> None:
    questions = choose_questions(RECORDS, MEDIA_ROOT)
    assert [question.instruction for question in questions] == [
        "words of hazy",
        "words of hazy",
        "words of sung",
        "words of sung",
        "words of plain text",
        "words of unsolvable",
    ]
    media = [question.media for question in questions]
    names = ("hazy", "blurred", "sung", "drummed")
    assert media == [*(MEDIA_ROOT / "media" / name for name in names), None, None]
    assert [question.valid_tool_ids for question in questions] == [
        ("dehaze",),
        ("deblur",),
        ("pitch",),
        ("tempo",),
        ("t5", "bart"),
        ("unknown",),
    ]
    assert "fit 3 tools; the image decides" in questions[0].note


def test_a_split_without_such_questions_is_an_input_error() -> None:
    lacking = [record for record in RECORDS if record.record_id != "drummed"]
    with pytest.raises(InputError, match="no two ambiguous questions"):
        choose_questions(lacking, MEDIA_ROOT)
    for name in ("plain text", "unsolvable"):
        with pytest.raises(InputError, match="text question"):
            choose_questions([record for record in RECORDS if record.record_id != name], MEDIA_ROOT)
