"""How good a picture is, and what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from serve.tools.images.noise import estimate_noise
from serve.tools.images.outlines import to_gray
from serve.tools.images.resolution import MAX_DETAIL_RATIO, MIN_PEAK_DEPTH, compare_detail, estimate_motion, find_blocks
from serve.tools.spec import ToolOutput, ToolSpec, picture_argument


@dataclass(frozen=True)
class Quality:
    """Marks from 0 (bad) to 100 (good) and the raw measures behind them.

    Attributes:
        sharpness, cleanness, exposure, contrast: the marks.
        noise_levels: deviation of the noise in grey levels.
        mean_level: mean brightness, 0 to 255.
        is_blocky: the picture is a blown-up smaller one.
    """

    sharpness: float
    cleanness: float
    exposure: float
    contrast: float
    noise_levels: float
    mean_level: float
    is_blocky: bool

    @property
    def score(self) -> float:
        """The overall mark: the worst fault counts most."""
        marks = (self.sharpness, self.cleanness, self.exposure, self.contrast)
        return float(0.6 * min(marks) + 0.4 * np.mean(marks))


def measure_quality(image: np.ndarray) -> Quality:
    """Classical measures without a reference.

    Sharpness is the width of the strongest edges: the second derivative over the first along them, which halves when
    a blur doubles; noise is taken off first, for it looks sharp.
    """
    noise = estimate_noise(image)
    gray = to_gray(image)
    quiet = cv2.GaussianBlur(gray, (0, 0), 0.7 + 0.05 * min(noise, 40)).astype(np.float32)
    slope = np.hypot(cv2.Sobel(quiet, cv2.CV_32F, 1, 0), cv2.Sobel(quiet, cv2.CV_32F, 0, 1)) / 8
    bend = np.abs(cv2.Laplacian(quiet, cv2.CV_32F))
    strong = slope >= np.percentile(slope, 97)
    ratio = float(bend[strong].mean() / (slope[strong].mean() + 1e-6)) if slope.max() > 0.5 else 0.0
    _, angle, depth = estimate_motion(gray)
    if depth > MIN_PEAK_DEPTH:  # edges across a motion are smeared, those along it are not
        ratio *= min(1.0, compare_detail(gray, angle) / MAX_DETAIL_RATIO)
    is_blocky = find_blocks(image, 0) is not None and find_blocks(image, 1) is not None
    sharpness = min(100.0, 100 * ratio / 0.5) * (0.3 if is_blocky else 1.0)
    mean = float(gray.mean())
    clipped = float(((gray <= 2) | (gray >= 253)).mean())
    low, high = np.percentile(gray, [2, 98])
    return Quality(
        sharpness=sharpness,
        cleanness=float(np.clip(100 * (1 - (noise - 1) / 30), 0, 100)),
        exposure=float(np.clip(100 - max(0.0, 80 - mean) * 1.5 - max(0.0, mean - 190) * 1.5 - 60 * clipped, 0, 100)),
        contrast=float(np.clip((high - low) / 1.4, 0, 100)),
        noise_levels=noise,
        mean_level=mean,
        is_blocky=is_blocky,
    )


def describe_quality(image: np.ndarray) -> str:
    """The marks in words."""
    quality = measure_quality(image)
    faults = {
        "it is made of coarse blocks" if quality.is_blocky else "it is not sharp": quality.sharpness,
        "it is noisy": quality.cleanness,
        "it is too dark" if quality.mean_level < 128 else "it is too bright": quality.exposure,
        "its contrast is low, as in haze": quality.contrast,
    }
    worst = min(faults, key=lambda fault: faults[fault])
    remark = f"The worst fault: {worst}." if faults[worst] < 60 else "No fault stands out."
    return (
        f"Quality {quality.score:.0f} of 100 (sharpness {quality.sharpness:.0f}, freedom from noise "
        f"{quality.cleanness:.0f}, "
        f"exposure {quality.exposure:.0f}, contrast {quality.contrast:.0f}). {remark} "
        "By classical measures; a learned judge would also weigh the content."
    )


def score_quality(image: np.ndarray) -> ToolOutput:
    """Marks for sharpness, noise, exposure and contrast."""
    return ToolOutput(describe_quality(image))


TOOLS = (
    ToolSpec(
        "local/score-quality",
        score_quality,
        "Scores sharpness, noise and exposure of a picture. Classical measures without a reference.",
        (picture_argument(),),
        "text",
    ),
)
