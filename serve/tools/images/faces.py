"""Faces, found without a network."""

from __future__ import annotations

import functools

import cv2
import numpy as np
from skimage.data import lbp_frontal_face_cascade_filename
from skimage.feature import Cascade

from serve.tools.media import png_file
from serve.tools.spec import ToolOutput, ToolSpec, picture_argument

WORKING_SIDE_PX = 480
MIN_SIDE_PX = 32  # of the picture at work
MIN_SKIN_SHARE = 0.35
_METHOD = (
    "a classical detector (LBP cascade and skin colour), which misses faces in profile, in poor light or of few pixels"
)


@functools.cache
def _cascade() -> Cascade:
    return Cascade(lbp_frontal_face_cascade_filename())


def find_skin(image: np.ndarray) -> np.ndarray:
    """Pixels of the colour of skin, bool [H, W] (bounds in YCrCb, Chai and Ngan 1999, somewhat wider)."""
    planes = cv2.cvtColor(image, cv2.COLOR_RGB2YCrCb)
    return (
        (planes[..., 0] > 50)
        & (planes[..., 1] > 133) & (planes[..., 1] < 180)
        & (planes[..., 2] > 75) & (planes[..., 2] < 132)
    )  # fmt: skip


def find_faces(image: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Boxes (x, y, width, height) of upright frontal faces, the largest first.

    The cascade of local binary patterns finds photographed faces; where it finds none, oval regions of skin colour
    with two dark spots for eyes count.
    """
    scale = min(1.0, WORKING_SIDE_PX / max(image.shape[:2]))
    if min(image.shape[:2]) * scale < MIN_SIDE_PX:
        return []
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else image
    skin = cv2.morphologyEx(find_skin(small).astype(np.uint8), cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
    side = min(small.shape[:2])
    found = _cascade().detect_multi_scale(
        small, scale_factor=1.15, step_ratio=1, min_size=(24, 24), max_size=(side, side), min_neighbor_number=4
    )
    boxes = [(box["c"], box["r"], box["width"], box["height"]) for box in found]
    boxes = [(x, y, w, h) for x, y, w, h in boxes if skin[y : y + h, x : x + w].mean() >= MIN_SKIN_SHARE]
    boxes = _drop_overlaps(boxes) or _find_ovals(small, skin)
    return [(round(x / scale), round(y / scale), round(w / scale), round(h / scale)) for x, y, w, h in boxes]


def _drop_overlaps(boxes: list[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
    kept: list[tuple[int, int, int, int]] = []
    for x, y, w, h in sorted(boxes, key=lambda box: -box[2] * box[3]):
        centers = [(abs(x + w / 2 - a - c / 2), abs(y + h / 2 - b - d / 2), c) for a, b, c, d in kept]
        if all(dx > 0.6 * c or dy > 0.6 * c for dx, dy, c in centers):
            kept.append((x, y, w, h))
    return kept


def _find_ovals(image: np.ndarray, skin: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Oval regions of skin with a pair of eyes; the neck below an oval is left out."""
    opened = cv2.morphologyEx(skin, cv2.MORPH_OPEN, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (15, 15)))
    count, labels, sizes, _ = cv2.connectedComponentsWithStats(opened)
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    boxes = []
    for number in range(1, count):
        x, y, w, h = (int(v) for v in sizes[number, :4])
        h = min(h, round(1.45 * w))
        if sizes[number, cv2.CC_STAT_AREA] < 0.004 * skin.size or h < 0.8 * w:
            continue
        region = (labels[y : y + h, x : x + w] == number).astype(np.uint8)
        hull = cv2.fillPoly(np.zeros_like(region), [cv2.convexHull(cv2.findNonZero(region))], 1)
        if not 0.6 < hull.mean() < 0.98 or region.sum() < 0.75 * hull.sum():
            continue
        face = gray[y : y + h, x : x + w]
        dark = (face < 0.65 * np.median(face[region > 0])) & (cv2.erode(hull, np.ones((5, 5), np.uint8)) > 0)
        eyes = dark[: int(0.75 * h)]
        has_eyes = eyes[:, : w // 2].sum() >= 3 and eyes[:, w // 2 :].sum() >= 3
        if has_eyes:
            boxes.append((x, y, w, h))
    return sorted(boxes, key=lambda box: -box[2] * box[3])


def describe_faces(boxes: list[tuple[int, int, int, int]]) -> str:
    """Where the faces are, and how they were found."""
    where = "; ".join(f"x {x} to {x + w}, y {y} to {y + h}" for x, y, w, h in boxes)
    count = f"Found {len(boxes)} face{'s' if len(boxes) != 1 else ''}"
    return f"{count}{f' ({where})' if boxes else ''} with {_METHOD}."


def detect_faces(image: np.ndarray) -> ToolOutput:
    """Where faces are, in words."""
    return ToolOutput(describe_faces(find_faces(image)))


def tag_faces(image: np.ndarray) -> ToolOutput:
    """The picture with a frame around each face."""
    boxes = find_faces(image)
    tagged = image.copy()
    for x, y, w, h in boxes:
        cv2.rectangle(tagged, (x, y), (x + w, y + h), (0, 255, 0), max(1, tagged.shape[0] // 200))
    return ToolOutput(describe_faces(boxes), png_file(tagged))


TOOLS = (
    ToolSpec(
        "local/detect-faces",
        detect_faces,
        "Finds faces in a picture. A classical detector (LBP cascade and skin colour) in place of a network: "
        "upright frontal "
        "faces only.",
        (picture_argument(),),
        "text",
    ),
)
