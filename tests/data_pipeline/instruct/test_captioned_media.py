"""Files found by their captions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_pipeline.errors import InputError
from data_pipeline.instruct.captioned_media import CaptionedMedium, list_nearest, match_media, read_captioned_media
from data_pipeline.records.schema import Modality

IMAGE, AUDIO = Modality.IMAGE, Modality.AUDIO


def test_the_nearest_caption_of_the_modality_and_equal_ones_in_turn() -> None:
    media = [
        CaptionedMedium("a.png", "A dog at a lake.", IMAGE),
        CaptionedMedium("b.png", "A train in a station.", IMAGE),
        CaptionedMedium("c.wav", "A dog barks.", AUDIO),
        CaptionedMedium("d.png", "A dog at a lake.", IMAGE),
    ]
    wanted = [
        ("Is my dog wet?", IMAGE),
        ("What does the dog say?", AUDIO),
        ("Cut the dog out", IMAGE),
        ("When does the train leave the station?", IMAGE),
        ("Crop it", IMAGE),
        ("A dog", Modality.VIDEO),
    ]
    assert match_media(wanted, media) == [0, 2, 3, 1, None, None]
    assert match_media([("the of", IMAGE)], [CaptionedMedium("a.png", "the of", IMAGE)]) == [None]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"file": "../a.png"}, "below the media root"),
        ({"file": "https://x.example/a.png"}, "is an address"),
        ({"file": "a.exe"}, "is no picture"),
        ({"file": "gone.png"}, "there is no file"),
        ({"caption": 3}, "no text"),
        ({}, "earlier row"),
    ],
)
def test_a_bad_row_is_told_with_its_line(tmp_path: Path, change: dict[str, object], said: str) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    row = {"file": "a.png", "caption": "A dog.", "licence": "CC0-1.0"}
    captions = tmp_path / "captions.jsonl"
    captions.write_text(json.dumps(row) + "\n", encoding="utf-8")
    assert read_captioned_media(captions, tmp_path) == [CaptionedMedium("a.png", "A dog.", IMAGE, "CC0-1.0")]
    captions.write_text(json.dumps(row) + "\n" + json.dumps(row | change) + "\n", encoding="utf-8")
    with pytest.raises(InputError, match="line 2") as caught:
        read_captioned_media(captions, tmp_path)
    assert said in str(caught.value)


def test_the_nearest_files_of_a_description() -> None:
    media = [
        CaptionedMedium("1.png", "Rain on a street.", IMAGE),
        CaptionedMedium("2.png", "A dog.", IMAGE),
        CaptionedMedium("3.png", "Rain.", IMAGE),
        CaptionedMedium("4.wav", "Rain.", AUDIO),
    ]
    wanted = [("Removes rain", IMAGE), ("Removes rain", Modality.VIDEO), ("Bakes bread", IMAGE)]
    nearest = [[medium.file for medium in found] for found in list_nearest(wanted, media, 4)]
    assert nearest == [["3.png", "1.png"], [], []]
    assert [medium.file for medium in list_nearest(wanted, media, 1)[0]] == ["3.png"]
