"""Noise, grain and rain streaks taken out of a picture."""

from __future__ import annotations

import cv2
import numpy as np

from serve.tools.images.outlines import to_gray
from serve.tools.media import png_file
from serve.tools.spec import ToolOutput, ToolSpec, picture_argument

MAX_LEVEL = 45.0  # beyond it a stronger filter only smears


def estimate_noise(image: np.ndarray) -> float:
    """Standard deviation of white noise, in grey levels (Immerkaer 1996), per colour channel on average.

    The median over blocks keeps texture and edges from counting as noise.
    """
    kernel = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
    channels = image.reshape(*image.shape[:2], -1).astype(np.float32)
    levels = []
    for number in range(channels.shape[2]):
        response = np.abs(cv2.filter2D(channels[..., number], -1, kernel))
        blocks = cv2.resize(
            response, (max(1, response.shape[1] // 16), max(1, response.shape[0] // 16)), interpolation=cv2.INTER_AREA
        )
        levels.append(float(np.median(blocks)) * np.sqrt(np.pi / 2) / 6)
    return float(np.mean(levels))


def reduce_noise(image: np.ndarray) -> np.ndarray:
    """Non-local means (Buades et al. 2005) as strong as the noise found, uint8 [H, W, 3]."""
    level = min(estimate_noise(image), MAX_LEVEL)
    if level < 1.0:
        return image.copy()
    strength = 0.95 * level
    return cv2.fastNlMeansDenoisingColored(image[..., ::-1].copy(), None, strength, 1.2 * strength, 5, 17)[
        ..., ::-1
    ].copy()


def denoise_image(image: np.ndarray) -> ToolOutput:
    """The picture with less noise."""
    level = estimate_noise(image)
    text = f"Found noise of about {level:.0f} grey levels and reduced it with the classical non-local means filter."
    return ToolOutput(text, png_file(reduce_noise(image)))


def estimate_streak_angle(gray: np.ndarray) -> float:
    """Direction of the streaks in radians from the horizontal, by the structure tensor of bright fine detail."""
    detail = np.maximum(gray.astype(np.float32) - cv2.medianBlur(gray, 7), 0)
    gx, gy = cv2.Sobel(detail, cv2.CV_32F, 1, 0), cv2.Sobel(detail, cv2.CV_32F, 0, 1)
    across = 0.5 * np.arctan2(2 * (gx * gy).mean(), (gx * gx - gy * gy).mean())
    return float(across + np.pi / 2)


def remove_rain(image: np.ndarray) -> np.ndarray:
    """Replace bright thin streaks by what lies beside them, uint8 [H, W, 3].

    A streak is brighter than its neighbours across its direction, so an opening across it (the largest minimum over
    short segments) takes it out and leaves wide bright things alone.
    """
    angle = estimate_streak_angle(to_gray(image)) + np.pi / 2
    kernel = _segment(9, angle)
    opened = cv2.morphologyEx(image, cv2.MORPH_OPEN, kernel)
    streaks = cv2.GaussianBlur(np.maximum(image.astype(np.float32) - opened, 0).min(axis=2), (0, 0), 0.7)[..., None]
    weight = np.clip((streaks - 4) / 12, 0, 1)
    cleaned = image * (1 - weight) + cv2.medianBlur(opened, 3) * weight
    return cleaned.clip(0, 255).astype(np.uint8)


def _segment(length: int, angle: float) -> np.ndarray:
    kernel = np.zeros((length, length), np.uint8)
    middle = (length - 1) / 2
    dx, dy = middle * np.cos(angle), middle * np.sin(angle)
    cv2.line(kernel, (round(middle - dx), round(middle - dy)), (round(middle + dx), round(middle + dy)), 1, 1)
    return kernel


def derain_image(image: np.ndarray) -> ToolOutput:
    """The picture with fewer rain streaks."""
    text = "Removed bright streaks of the prevailing direction with a classical directional opening."
    return ToolOutput(text, png_file(remove_rain(image)))


TOOLS = (
    ToolSpec(
        "local/denoise-image",
        denoise_image,
        "Removes noise and grain from a picture. A classical filter (non-local means) in place of a network.",
        (picture_argument(),),
        "image",
    ),
    ToolSpec(
        "local/derain-image",
        derain_image,
        "Removes rain streaks from a picture. A classical filter (directional opening) in place of a network: "
        "it removes "
        "thin bright streaks of one direction, and thin bright detail of the scene in that direction with them.",
        (picture_argument(),),
        "image",
    ),
)
