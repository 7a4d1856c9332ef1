"""Soft edges, sketches and segments."""

from __future__ import annotations

import cv2
import numpy as np
from skimage.segmentation import felzenszwalb

from serve.tools.media import png_file
from serve.tools.spec import ToolOutput

WORKING_SIDE_PX = 640  # segments are found on a picture no larger than this


def find_soft_edges(image: np.ndarray) -> np.ndarray:
    """Broad ridges where colour changes at several scales, uint8 [H, W]; the boundary map that HED would learn."""
    planes = cv2.cvtColor(image, cv2.COLOR_RGB2LAB).astype(np.float32)
    total = np.zeros(image.shape[:2], np.float32)
    for sigma in (1.0, 2.0, 4.0):
        smooth = cv2.GaussianBlur(planes, (0, 0), sigma)
        size = np.hypot(cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)).max(axis=2)
        total += sigma * size
    total = cv2.GaussianBlur(total, (0, 0), 1.5)
    return (255 * np.clip(total / (np.percentile(total, 99.5) + 1e-6), 0, 1) ** 0.8).astype(np.uint8)


def draw_soft_edges(image: np.ndarray) -> ToolOutput:
    """Grey ridges on black."""
    text = "Soft edges of colour at three scales: a classical method in place of the HED network."
    return ToolOutput(text, png_file(find_soft_edges(image)))


def scribble(soft: np.ndarray) -> np.ndarray:
    """Thick white strokes on black along the strongest soft edges, both uint8 [H, W]."""
    level, _ = cv2.threshold(soft, 0, 255, cv2.THRESH_OTSU)
    strokes = (cv2.GaussianBlur(soft, (0, 0), 2.0) > level).astype(np.uint8) * 255
    counted, labels, sizes, _ = cv2.connectedComponentsWithStats(strokes)
    small = [number for number in range(1, counted) if sizes[number, cv2.CC_STAT_AREA] < strokes.size // 5000]
    strokes[np.isin(labels, small)] = 0
    return strokes


def draw_sketch(image: np.ndarray) -> ToolOutput:
    """A scribble along the soft edges."""
    return ToolOutput(
        "A scribble along the soft edges, by a classical method.", png_file(scribble(find_soft_edges(image)))
    )


def find_segments(image: np.ndarray) -> np.ndarray:
    """Labels int32 [H, W] from 0, by Felzenszwalb and Huttenlocher 2004 on colours smoothed along edges."""
    height, width = image.shape[:2]
    scale = min(1.0, WORKING_SIDE_PX / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.bilateralFilter(cv2.resize(image, size, interpolation=cv2.INTER_AREA), 9, 40, 7)
    labels = felzenszwalb(small, scale=300, sigma=0.5, min_size=max(20, small.shape[0] * small.shape[1] // 100))
    return cv2.resize(labels.astype(np.int32), (width, height), interpolation=cv2.INTER_NEAREST)


def draw_segments(image: np.ndarray) -> ToolOutput:
    """One flat colour per segment; neighbours in number are far apart in hue."""
    labels = find_segments(image)
    count = int(labels.max()) + 1
    hues = (np.arange(count) * 137.508 / 2 % 180).astype(np.uint8)  # the golden angle
    levels = (170 + 80 * (np.arange(count) % 2)).astype(np.uint8)
    palette = cv2.cvtColor(np.stack([hues, np.full_like(hues, 200), levels], axis=1)[None], cv2.COLOR_HSV2RGB)[0]
    text = (
        f"Divided the picture into {count} segments of like colour with a classical graph method; they have no names."
    )
    return ToolOutput(text, png_file(palette[labels]))
