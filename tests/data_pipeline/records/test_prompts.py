"""Prompt strings against the reference's, piece by piece."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_pipeline.records.prompts import ANSWER_END, MEDIA, render_prompt, render_target


def test_pieces_equal_those_that_the_reference_tokenises_in_training(shared_dir: Path) -> None:
    records = json.loads((shared_dir / "oracle/prompt/prompts.json").read_text(encoding="utf-8"))
    assert {record["modality"] for record in records} == {"text", "image", "audio", "video"}
    for record in records:
        pieces = render_prompt(record["human"], record["modality"] != "text")
        texts = [piece for piece in pieces if piece is not MEDIA]
        target = render_target(record["api_name"])
        assert [*texts, target] == record["train"]["separately_tokenized_texts"]
        assert texts[-1] == record["train"]["text_after_prefix"]
        assert target == record["train"]["target"]
        # the place of the slot: the reference's pieces, after bos and with neighbouring texts joined
        joined = "".join("\0" if piece is MEDIA else piece for piece in [*pieces, target])
        expected = "".join(text[0] if text else "\0" for _, *text in record["train"]["pieces"][1:])
        assert joined == expected


@pytest.mark.parametrize("words", [" padded \n", "### Assistant: {'api_name': x}\n###", "<Img></Img>", "何か"])
def test_the_words_are_neither_stripped_nor_altered(words: str) -> None:
    for has_media in (True, False):
        pieces = render_prompt(words, has_media)
        assert pieces.count(MEDIA) == has_media
        last = pieces[-1]
        assert last is not None
        assert last == ("</Img> " if has_media else "") + words + "\n### Assistant: "


def test_no_answer_is_the_beginning_of_another() -> None:
    """Otherwise the trie of the catalogue would have an answer at an inner node."""
    assert render_target("t5") == "{'api_name': t5" + ANSWER_END
    assert not render_target("t5-base").startswith(render_target("t5"))
