"""When two records are about the same thing."""

from __future__ import annotations

import unicodedata
from typing import Any

from data_pipeline.records.dialogue import render_answer
from data_pipeline.records.keys import group_key, media_keys, question_keys
from data_pipeline.records.schema import ASSISTANT, Modality, ToolRecord, Turn


def _record(instruction: str, media_uri: str = "", **fields: Any) -> ToolRecord:
    modality = Modality.IMAGE if media_uri else Modality.TEXT
    return ToolRecord("r", "test", modality, instruction, ("a",), media_uri, **fields)


def test_a_medium_is_known_by_its_content_and_by_its_path() -> None:
    assert media_keys(_record("q")) == ()
    assert media_keys(_record("q", "a.png")) == ("image:a.png",)
    assert media_keys(_record("q", "a.png", media_sha256="ab")) == ("ab", "image:a.png")
    nfc, nfd = (unicodedata.normalize(form, "grün.png") for form in ("NFC", "NFD"))
    assert media_keys(_record("q", nfc)) == media_keys(_record("q", nfd))


def test_questions_are_the_same_by_words_and_medium() -> None:
    assert question_keys(_record("What IS it")) == question_keys(_record("what is  it "))
    assert question_keys(_record("q", "a.png")) != question_keys(_record("q", "b.png"))
    assert question_keys(_record("q")) != question_keys(_record("q", "a.png"))
    same_bytes = question_keys(_record("q", "a.png", media_sha256="s"))
    assert same_bytes[0] == question_keys(_record("Q", "b.png", media_sha256="s"))[0]
    dialogue = _record("q", turns=(Turn(ASSISTANT, render_answer("Hi.")),))
    assert question_keys(dialogue) != question_keys(_record("q")), "a dialogue's prompt and a question are two things"


def test_groups_are_media_or_words() -> None:
    assert group_key(_record("one", "a.png")) == group_key(_record("other", "a.png"))
    assert group_key(_record("Say it")) == group_key(_record("say  it"))
    assert group_key(_record("Say it")) != group_key(_record("Say that"))
