"""Captioned pictures as users have them: rows of any form, and COCO's annotation files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import InputError
from data_pipeline.instruct.captions import CaptionedImage, read_captions

DOG = {"image": "a/dog.png", "caption": "A dog\n at a lake. ", "objects": [{"label": "dog", "box": [1.2, 2, 30, 40]}]}


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_rows(tmp_path: Path) -> None:
    rows: list[Any] = [
        DOG,
        {"image": "b.png", "caption": "A cat."},
        {"image": "b.png", "caption": "Again."},
        {"image": "c.png"},
        {"image": "d.png", "caption": "D", "objects": [{"label": "x", "box": [5, 5, 4, 9]}]},
        {"image": "e.png", "caption": "E", "objects": [{"label": "x", "box": [True, 5, 6, 9]}]},
        {"image": "f.png", "caption": "F", "objects": "none"},
        7,
    ]
    images, left_out = read_captions(write(tmp_path / "captions.json", rows))
    assert images == [
        CaptionedImage("a/dog.png", "A dog at a lake.", (("dog", (1, 2, 30, 40)),)),
        CaptionedImage("b.png", "A cat."),
    ]
    assert images[0].render() == "A dog at a lake. Objects: dog (1, 2, 30, 40)."
    assert images[1].render() == "A cat."
    assert sum(left_out.values()) == 6
    (tmp_path / "captions.jsonl").write_text(json.dumps(DOG) + "\n", encoding="utf-8")
    assert read_captions(tmp_path / "captions.jsonl") == (images[:1], {})


def test_cocos_captions_and_boxes(tmp_path: Path) -> None:
    captions = {
        "images": [{"id": 7, "file_name": "7.jpg"}, {"id": 8, "file_name": "8.jpg"}],
        "annotations": [
            {"image_id": 7, "caption": "A dog at a lake."},
            {"image_id": 7, "caption": "A wet dog"},
            {"image_id": 7, "caption": "A dog at a lake."},
        ],
    }
    instances = {
        "images": captions["images"],
        "categories": [{"id": 18, "name": "dog"}],
        "annotations": [
            {"image_id": 7, "category_id": 18, "bbox": [10.4, 20, 30, 5.5]},
            {"image_id": 7, "category_id": 18, "bbox": [1, 2, 0.2, 5]},
        ],
    }
    file = write(tmp_path / "captions_val2017.json", captions)
    alone = CaptionedImage("7.jpg", "A dog at a lake. A wet dog.")
    assert read_captions(file) == ([alone], {})
    write(tmp_path / "instances_val2017.json", instances)
    assert read_captions(tmp_path)[0] == [CaptionedImage("7.jpg", alone.caption, (("dog", (10, 20, 40, 26)),))]


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file or folder"):
        read_captions(tmp_path / "none.json")
    with pytest.raises(InputError, match=r"no captions\*\.json"):
        read_captions(tmp_path)
    with pytest.raises(InputError, match="no caption that can be used"):
        read_captions(write(tmp_path / "rows.json", [{"image": "a"}]))
    with pytest.raises(InputError, match="not COCO's annotations"):
        read_captions(write(tmp_path / "coco.json", {"images": [{"id": 1}], "annotations": [{"caption": "x"}]}))
