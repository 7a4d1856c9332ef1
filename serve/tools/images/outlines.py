"""Edges, lines and crops of a picture."""

from __future__ import annotations

import cv2
import numpy as np

from serve.tools.media import png_file
from serve.tools.spec import Argument, ToolOutput, ToolSpec, picture_argument


def to_gray(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] RGB to uint8 [H, W]."""
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def find_edges(image: np.ndarray) -> np.ndarray:
    """Canny edges, uint8 [H, W] of 0 and 255; thresholds from the picture's own gradients.

    Source: Canny 1986; the upper threshold is Otsu's over the gradients' size, the lower one half of it.
    """
    smooth = cv2.GaussianBlur(to_gray(image), (0, 0), 1.0)
    gx, gy = cv2.Sobel(smooth, cv2.CV_16S, 1, 0), cv2.Sobel(smooth, cv2.CV_16S, 0, 1)
    size = np.minimum(np.abs(gx.astype(np.int32)) + np.abs(gy.astype(np.int32)), 1020)
    level, _ = cv2.threshold((size // 4).astype(np.uint8), 0, 255, cv2.THRESH_OTSU)
    upper = max(4.0 * level, 40.0)
    return cv2.Canny(gx, gy, upper / 2, upper)


def detect_edges(image: np.ndarray) -> ToolOutput:
    """White edges on black."""
    edges = find_edges(image)
    share = 100 * np.count_nonzero(edges) / edges.size
    return ToolOutput(f"Canny edges, white on black: {share:.1f} % of the pixels lie on an edge.", png_file(edges))


def find_lines(image: np.ndarray) -> np.ndarray:
    """Straight lines, float32 [N, 4]: x1, y1, x2, y2, the longest first (von Gioi et al. 2010, LSD)."""
    found = cv2.createLineSegmentDetector().detect(to_gray(image))[0]
    if found is None:
        return np.empty((0, 4), np.float32)
    lines = found.reshape(-1, 4)
    length = np.hypot(lines[:, 2] - lines[:, 0], lines[:, 3] - lines[:, 1])
    keep = length >= 0.05 * max(image.shape[:2])
    return lines[keep][np.argsort(-length[keep], kind="stable")]


def detect_lines(image: np.ndarray) -> ToolOutput:
    """White lines on black, and where the longest lie."""
    lines = find_lines(image)
    canvas = np.zeros(image.shape[:2], np.uint8)
    for x1, y1, x2, y2 in lines.round().astype(int).tolist():
        cv2.line(canvas, (x1, y1), (x2, y2), 255, 1, cv2.LINE_AA)
    longest = "; ".join("({:.0f}, {:.0f}) to ({:.0f}, {:.0f})".format(*line) for line in lines[:5])
    text = f"Found {len(lines)} straight lines with the classical line segment detector"
    return ToolOutput(text + (f", the longest: {longest}." if len(lines) else "."), png_file(canvas))


def crop_image(image: np.ndarray, side: int = 0) -> ToolOutput:
    """The middle square, at most `side` pixels wide; 0 = as large as possible."""
    height, width = image.shape[:2]
    length = min(height, width, side or max(height, width))
    top, left = (height - length) // 2, (width - length) // 2
    square = image[top : top + length, left : left + length]
    return ToolOutput(f"Cropped {width} x {height} to its middle {length} x {length} pixels.", png_file(square))


TOOLS = (
    ToolSpec(
        "local/detect-edges",
        detect_edges,
        "Draws the edges of a picture. Canny's method with thresholds taken from the picture.",
        (picture_argument(),),
        "image",
        method="exact",
        timeout_s=20,
    ),
    ToolSpec(
        "local/detect-lines",
        detect_lines,
        "Finds straight lines in a picture. The classical line segment detector (LSD).",
        (picture_argument(),),
        "image",
        timeout_s=30,
    ),
    ToolSpec(
        "local/crop-image",
        crop_image,
        "Crops a picture to its middle square.",
        (
            picture_argument(),
            Argument("side", "integer", "longest side of the square in pixels; 0 = as large as fits", 0, minimum=0),
        ),
        "image",
        method="exact",
        timeout_s=20,
    ),
)
