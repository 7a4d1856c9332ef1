"""Captioned pictures, from which a teacher imagines what their owners may ask (GPT4Tools, supplement section 2).

Two forms are read: rows ``{"image", "caption", "objects": [{"label", "box": [x1, y1, x2, y2]}]}``, objects left out
where none are known; and COCO's annotation files, captions and instances, in one folder or alone.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.errors import InputError
from data_pipeline.records.text import check_encodable, parse_json, read_text
from data_pipeline.sources.rows import read_rows

MAX_CAPTION_CHARS = 2000
MAX_OBJECTS = 30  # that a teacher is told of


@dataclass(frozen=True, slots=True)
class CaptionedImage:
    """A picture in words.

    Attributes:
        image: its name, as the source gives it.
        caption: one line.
        objects: (label, (x1, y1, x2, y2) in pixels), top left and bottom right corner; at most `MAX_OBJECTS`.
    """

    image: str
    caption: str
    objects: tuple[tuple[str, tuple[int, int, int, int]], ...] = ()

    def render(self) -> str:
        """The caption as a teacher reads it, each object with its box behind it."""
        boxes = "; ".join(f"{label} ({', '.join(map(str, box))})" for label, box in self.objects)
        return f"{self.caption} Objects: {boxes}." if boxes else self.caption


def read_captions(path: Path) -> tuple[list[CaptionedImage], dict[str, int]]:
    """Read captioned pictures.

    Args:
        path: a file of rows (JSON list, JSON Lines, CSV or Parquet), a COCO annotation file with captions, or a folder
            with COCO's `captions*.json` and, for the boxes, `instances*.json`.

    Returns:
        the pictures, each once, in order; reason -> number of rows that were left out.

    Raises:
        InputError: no such file, or nothing in it can be used.
    """
    if path.is_dir():
        files = sorted(path.glob("captions*.json"))
        if not files:
            raise InputError(f"{path} holds no captions*.json; give COCO's annotation folder, or a file of captions.")
        instances = sorted(path.glob("instances*.json"))
        images, left_out = _read_coco(_load(files), _load(instances)), dict[str, int]()
    elif not path.is_file():
        raise InputError(f"there is no file or folder {path}; give the captions that `generate` shall start from.")
    elif _is_coco(path):
        images, left_out = _read_coco(_load([path]), []), {}
    else:
        images, left_out = _read_rows(path)
    if not images:
        raise InputError(f"{path} holds no caption that can be used ({left_out}); give rows with image and caption.")
    return images, left_out


def _read_rows(path: Path) -> tuple[list[CaptionedImage], dict[str, int]]:
    images: dict[str, CaptionedImage] = {}
    left_out: defaultdict[str, int] = defaultdict(int)
    for row in read_rows(path):
        try:
            found = _parse_row(row.content)
        except InputError as error:
            left_out[str(error)] += 1
            continue
        if found.image in images:
            left_out["an image that an earlier row has"] += 1
            continue
        images[found.image] = found
    return list(images.values()), dict(left_out)


def _parse_row(content: Any) -> CaptionedImage:
    if not isinstance(content, Mapping):
        raise InputError("no object with image and caption")
    image, caption = content.get("image"), content.get("caption")
    if not (isinstance(image, str) and image.strip() and isinstance(caption, str) and caption.strip()):
        raise InputError("image or caption is missing or no text")
    objects = content.get("objects") or []
    if not isinstance(objects, list):
        raise InputError("objects is no list")
    return _build(image, caption, [_parse_object(each) for each in objects])


def _parse_object(content: Any) -> tuple[str, tuple[int, int, int, int]]:
    box = content.get("box") if isinstance(content, Mapping) else None
    label = content.get("label") if isinstance(content, Mapping) else None
    if not isinstance(label, str) or not isinstance(box, list) or len(box) != 4:
        raise InputError("an object is no label with a box of four numbers")
    if not all(isinstance(side, int | float) and not isinstance(side, bool) for side in box):
        raise InputError("an object is no label with a box of four numbers")
    x1, y1, x2, y2 = (round(side) for side in box)
    if not (x1 < x2 and y1 < y2):
        raise InputError("a box's second corner is not below and right of its first")
    return " ".join(label.split()), (x1, y1, x2, y2)


def _build(image: str, caption: str, objects: list[tuple[str, tuple[int, int, int, int]]]) -> CaptionedImage:
    line = " ".join(caption.split())[:MAX_CAPTION_CHARS]
    check_encodable(line + image)
    return CaptionedImage(image.strip(), line, tuple(objects[:MAX_OBJECTS]))


def _is_coco(path: Path) -> bool:
    """COCO's files are one object with the keys `images` and `annotations`."""
    if path.suffix != ".json":
        return False
    text = read_text(path)
    return text.lstrip()[:1] == "{" and '"annotations"' in text and '"images"' in text


def _load(files: list[Path]) -> list[dict[str, Any]]:
    loaded = []
    for file in files:
        try:
            content = parse_json(read_text(file))
        except InputError as error:
            raise InputError(f"{file}: {error}; copy the file again.") from error
        if not isinstance(content, dict) or not isinstance(content.get("annotations"), list):
            raise InputError(f"{file} has no list `annotations`; give COCO's own annotation file.")
        loaded.append(content)
    return loaded


def _read_coco(captions: list[dict[str, Any]], instances: list[dict[str, Any]]) -> list[CaptionedImage]:
    """COCO: several captions a picture, joined; boxes are (x, y, width, height) there."""
    try:
        names = {image["id"]: str(image["file_name"]) for file in captions for image in file["images"]}
        texts: defaultdict[Any, list[str]] = defaultdict(list)
        for file in captions:
            for each in file["annotations"]:
                texts[each["image_id"]].append(" ".join(str(each["caption"]).split()).rstrip("."))
        objects: defaultdict[Any, list[tuple[str, tuple[int, int, int, int]]]] = defaultdict(list)
        for file in instances:
            labels = {category["id"]: " ".join(str(category["name"]).split()) for category in file["categories"]}
            for each in file["annotations"]:
                x, y, width, height = each["bbox"]
                if width >= 1 and height >= 1:
                    box = (round(x), round(y), round(x + width), round(y + height))
                    objects[each["image_id"]].append((labels[each["category_id"]], box))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"these are not COCO's annotations ({json.dumps(str(error))}); give its own files.") from error
    return [
        _build(names[image], ". ".join(dict.fromkeys(texts[image])) + ".", objects[image])
        for image in names
        if texts[image]
    ]
