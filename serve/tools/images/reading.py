"""Bar codes, QR codes and lines of print."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from importlib.util import find_spec
from typing import Any

import cv2
import numpy as np

from serve.tools.images.outlines import to_gray
from serve.tools.media import png_file
from serve.tools.spec import ToolOutput, ToolSpec, picture_argument

Box = tuple[int, int, int, int]  # x, y, width, height

TESSERACT_S = 30
MIN_READ_SCORE = 0.6  # what the network makes of handwriting and of texture scores less
MIN_SIDE_PX = 12
MAX_SIDE_PX = 2000  # the network itself looks at no more


def has_valid_check_digit(number: str) -> bool:
    """Whether the last digit of an EAN-8, UPC-A or EAN-13 fits the others (GS1 General Specifications, section 7.9)."""
    if not re.fullmatch(r"\d{8}|\d{12}|\d{13}", number):
        return False
    digits = [int(digit) for digit in reversed(number)]
    return sum(digit * (3 if place % 2 else 1) for place, digit in enumerate(digits)) % 10 == 0


def find_codes(image: np.ndarray) -> list[tuple[str, str]]:
    """(kind, content) of every code that can be read; a number whose check digit is wrong is a misreading, so left
    out."""
    found: dict[str, str] = {}
    side = max(image.shape[:2])
    for scale in (1.0, 2.0, 3.0, 0.5):
        if found or not 64 <= side * scale <= 4000 or min(image.shape[:2]) * scale < 1:
            continue
        scaled = cv2.resize(
            image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
        )
        content, points, _ = cv2.QRCodeDetector().detectAndDecode(scaled)
        if points is not None and content:
            found[content] = "QR code"
        for part in (scaled, cv2.GaussianBlur(scaled, (0, 0), scale)):
            known, contents, kinds, _ = cv2.barcode.BarcodeDetector().detectAndDecodeWithType(part)
            for content, kind in zip(contents, kinds, strict=True) if known else ():
                if has_valid_check_digit(content):
                    found.setdefault(content, f"{kind.replace('_', '-')} bar code")
    return [(kind, content) for content, kind in found.items()]


def read_barcode(image: np.ndarray) -> ToolOutput:
    """The contents of the codes."""
    codes = find_codes(image)
    if not codes:
        return ToolOutput("No EAN, UPC or QR code could be read in the picture.")
    return ToolOutput(" ".join(f"{kind}: {content}." for kind, content in codes))


def find_text_lines(image: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Boxes (x, y, width, height) of lines of print, from top to bottom.

    Classical: print is a row of fine strokes, dark and light in turn. What a blackhat or tophat finds is joined
    sideways; rows that are wide, low and filled are kept.
    """
    gray = to_gray(image)
    reach = max(9, image.shape[0] // 40) | 1
    kernel = cv2.getStructuringElement(cv2.MORPH_RECT, (reach, reach))
    boxes: list[tuple[int, int, int, int]] = []
    for operation in (cv2.MORPH_BLACKHAT, cv2.MORPH_TOPHAT):  # dark print, then light print
        for box in _find_rows(cv2.morphologyEx(gray, operation, kernel), reach):
            if all(
                _overlap(box, other) < 0.3 for other in boxes
            ):  # the gaps between dark letters look like light print
                boxes.append(box)
    return sorted(boxes, key=lambda box: (box[1], box[0]))


def _find_rows(strokes: np.ndarray, reach: int) -> list[tuple[int, int, int, int]]:
    level, _ = cv2.threshold(strokes, 0, 255, cv2.THRESH_OTSU)
    ink = (strokes > max(level, 25)).astype(np.uint8)
    joined = cv2.morphologyEx(ink, cv2.MORPH_CLOSE, cv2.getStructuringElement(cv2.MORPH_RECT, (2 * reach + 1, 1)))
    joined = cv2.morphologyEx(joined, cv2.MORPH_OPEN, cv2.getStructuringElement(cv2.MORPH_RECT, (reach, 3)))
    count, _, sizes, _ = cv2.connectedComponentsWithStats(joined)
    boxes = []
    for number in range(1, count):
        x, y, w, h = (int(v) for v in sizes[number, :4])
        part = ink[y : y + h, x : x + w]
        changes = np.abs(np.diff(part.astype(np.int8), axis=1)).sum(axis=1).max()
        is_row = w >= 1.8 * h and 5 <= h <= len(ink) // 3 and 0.08 < part.mean() < 0.8
        if is_row and changes >= max(8, 0.8 * w / h):
            boxes.append((x, y, w, h))
    return boxes


def _overlap(box: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> float:
    """Share of the smaller box that lies in the other."""
    width = min(box[0] + box[2], other[0] + other[2]) - max(box[0], other[0])
    height = min(box[1] + box[3], other[1] + other[3]) - max(box[1], other[1])
    return max(0, width) * max(0, height) / min(box[2] * box[3], other[2] * other[3])


def has_reader() -> bool:
    """Whether the package with PP-OCR's weights and what runs them are installed."""
    return find_spec("rapidocr_onnxruntime") is not None and find_spec("onnxruntime") is not None


@functools.cache
def _reader() -> Any:
    """PP-OCR (version 4): lines of text found, turned upright and read, Latin letters and Chinese characters."""
    from rapidocr_onnxruntime import RapidOCR  # here, as its runtime starts a thread, and what forks must have none

    return RapidOCR(intra_op_num_threads=1, inter_op_num_threads=1)


def read_lines(image: np.ndarray) -> list[tuple[Box, str, float]]:
    """(box, words, score 0 to 1) of each line that the network reads, from top to bottom."""
    if min(image.shape[:2]) < MIN_SIDE_PX:
        return []
    scale = min(1.0, MAX_SIDE_PX / max(image.shape[:2]))
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else image
    found, _ = _reader()(np.ascontiguousarray(small[..., ::-1]))
    lines = []
    for corners, words, score in found or ():
        low, high = np.min(corners, axis=0) / scale, np.max(corners, axis=0) / scale
        x, y, w, h = (round(float(value)) for value in (*low, *(high - low)))
        if float(score) >= MIN_READ_SCORE:
            lines.append(((x, y, w, h), str(words), float(score)))
    return lines


def read_text(image: np.ndarray) -> ToolOutput:
    """The words by a network or by Tesseract where one is installed, otherwise where print may lie."""
    if has_reader():
        lines = read_lines(image)
        if not lines:
            return ToolOutput("Found no text that can be read, with the network PP-OCR.")
        words = "\n".join(line for _, line, _ in lines)
        where = "; ".join(f"x {x} to {x + w}, y {y} to {y + h}" for (x, y, w, h), *_ in lines[:50])
        return ToolOutput(f"Text read by the network PP-OCR:\n{words}\nThe lines lie at {where}.")
    program = shutil.which("tesseract")
    if program:
        picture = png_file(image).data
        done = subprocess.run(
            [program, "stdin", "stdout"], input=picture, capture_output=True, timeout=TESSERACT_S, check=False
        )
        if done.returncode == 0:
            words = done.stdout.decode(errors="replace").strip()
            return ToolOutput(f"Text read by Tesseract: {words}" if words else "Tesseract found no text.")
    boxes = find_text_lines(image)
    missing = "neither the network of the extra `tools` nor Tesseract is installed"
    if not boxes:
        return ToolOutput(f"Found no print with a classical detector; {missing}.")
    where = "; ".join(f"x {x} to {x + w}, y {y} to {y + h}" for x, y, w, h in boxes[:20])
    return ToolOutput(
        f"Words cannot be read here: {missing}. What may be print, or fine texture just as well, lies at {where}."
    )


TOOLS = (
    ToolSpec(
        "local/read-barcode",
        read_barcode,
        "Decodes a bar code. Reads EAN, UPC and QR codes; numbers with a wrong check digit are left out.",
        (picture_argument(),),
        "text",
        method="exact",
    ),
)
