"""How good a picture is, and what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from skimage.measure import blur_effect

from serve.tools.images.noise import estimate_noise
from serve.tools.images.outlines import to_gray
from serve.tools.images.resolution import estimate_motion, find_blocks, is_smeared
from serve.tools.spec import ToolOutput, ToolSpec, picture_argument

MIN_SIDE_PX = 16
BLURRED, SHARP = 0.85, 0.2  # Crete's measure of what has no detail left, and of what no lens betters
SMEARED_MARK = 25.0


@dataclass(frozen=True)
class Quality:
    """Marks from 0 (bad) to 100 (good) and the raw measures behind them.

    Attributes:
        sharpness, cleanness, exposure, contrast: the marks.
        noise_levels: deviation of the noise in grey levels.
        mean_level: mean brightness, 0 to 255.
        is_blocky: the picture is a blown-up smaller one.
        smear_px: length of a straight motion blur; 0 = none was found.
    """

    sharpness: float
    cleanness: float
    exposure: float
    contrast: float
    noise_levels: float
    mean_level: float
    is_blocky: bool
    smear_px: int

    @property
    def score(self) -> float:
        """The overall mark: the worst fault counts most."""
        marks = (self.sharpness, self.cleanness, self.exposure, self.contrast)
        return float(0.6 * min(marks) + 0.4 * np.mean(marks))


def measure_quality(image: np.ndarray) -> Quality:
    """Classical measures without a reference.

    Sharpness is how much a further blur takes away (Crete et al. 2007), along the axis where that is less, and a
    smear of motion by its cepstrum.
    """
    noise = estimate_noise(image)
    gray = to_gray(image)
    blur = max(blur_effect(gray, reduce_func=None)) if min(gray.shape) >= MIN_SIDE_PX and gray.std() > 1 else 1.0
    length, angle, depth = estimate_motion(gray)
    smear_px = length if is_smeared(gray, angle, depth) else 0
    is_blocky = find_blocks(image, 0) is not None and find_blocks(image, 1) is not None
    sharpness = float(np.clip(100 * (BLURRED - blur) / (BLURRED - SHARP), 0, 100))
    sharpness = min(sharpness * (0.3 if is_blocky else 1.0), SMEARED_MARK if smear_px else 100.0)
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
        smear_px=smear_px,
    )


def describe_quality(image: np.ndarray) -> str:
    """The marks in words."""
    quality = measure_quality(image)
    faults = {
        "it is made of coarse blocks"
        if quality.is_blocky
        else f"it is not sharp, smeared by a motion of some {quality.smear_px} pixels"
        if quality.smear_px
        else "it is not sharp": quality.sharpness,
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
