"""Haze and darkness taken off a picture."""

from __future__ import annotations

import cv2
import numpy as np

from serve.tools.media import png_file
from serve.tools.spec import ToolOutput, ToolSpec, picture_argument

HAZE_KEPT = 0.95  # a trace of haze looks natural (He et al. 2009)
MIN_TRANSMISSION = 0.1
MIN_VEIL = 15  # grey levels of the dark channel that clear pictures stay below somewhere


def smooth_like(guide: np.ndarray, values: np.ndarray, radius: int, epsilon: float = 1e-3) -> np.ndarray:
    """Guided filter (He et al. 2010): `values` float32 [H, W] smoothed along the edges of `guide` float32 [H, W] in
    [0, 1]."""
    size = (2 * radius + 1, 2 * radius + 1)

    def mean(x: np.ndarray) -> np.ndarray:
        return cv2.blur(x, size)

    mean_guide, mean_values = mean(guide), mean(values)
    slope = (mean(guide * values) - mean_guide * mean_values) / (mean(guide * guide) - mean_guide**2 + epsilon)
    return mean(slope) * guide + mean(mean_values - slope * mean_guide)


def estimate_airlight(image: np.ndarray, dark: np.ndarray) -> np.ndarray:
    """Colour of the haze, float32 [3] in [0, 1]: the mean where the dark channel is brightest."""
    count = min(max(10, dark.size // 200), dark.size)
    brightest = np.argpartition(dark.ravel(), -count)[-count:]
    return image.reshape(-1, 3)[brightest].mean(axis=0)


def estimate_transmission(picture: np.ndarray, airlight: np.ndarray) -> np.ndarray:
    """Share of light that passes the haze, float32 [H, W] in [0.1, 1], from the dark channel."""
    side = max(3, min(picture.shape[:2]) // 17)
    dark = cv2.erode((picture / airlight).min(axis=2), np.ones((side, side), np.uint8))
    guide = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    return np.clip(smooth_like(guide, 1 - HAZE_KEPT * dark, 3 * side), MIN_TRANSMISSION, 1)


def remove_haze(image: np.ndarray) -> np.ndarray:
    """Dark channel prior (He et al. 2009), uint8 [H, W, 3]."""
    picture = image.astype(np.float32) / 255
    side = max(3, min(picture.shape[:2]) // 17)
    airlight = estimate_airlight(picture, cv2.erode(picture.min(axis=2), np.ones((side, side), np.uint8)))
    airlight = np.maximum(airlight, 0.05)
    clear = (picture - airlight) / estimate_transmission(picture, airlight)[..., None] + airlight
    return (255 * clear.clip(0, 1)).astype(np.uint8)


def has_haze(image: np.ndarray) -> bool:
    """Whether even the darkest parts of uint8 [H, W, 3] are veiled: haze lightens all but the nearest things."""
    side = max(3, min(image.shape[:2]) // 17)
    dark = cv2.erode(image.min(axis=2), np.ones((side, side), np.uint8))
    return float(np.percentile(dark, 10)) > MIN_VEIL


def dehaze_image(image: np.ndarray) -> ToolOutput:
    """The picture without its haze."""
    if not has_haze(image):
        text = "Found no haze: the picture has parts that are black or of full colour. It is given back as it is."
        return ToolOutput(text, png_file(image))
    return ToolOutput("Removed haze with the classical dark channel prior.", png_file(remove_haze(image)))


def find_exposure(image: np.ndarray) -> tuple[float, float]:
    """Gain and gamma that bring a dark picture, uint8 [..., 3], to usual levels; (1, 1) where it is bright enough."""
    brightest = float(np.percentile(image.max(axis=-1), 99)) / 255
    if brightest < 0.02:
        return 1.0, 1.0  # black: nothing to amplify but noise
    gain = max(1.0, 0.95 / brightest)
    middle = float(np.clip(image.astype(np.float32).mean() / 255 * gain, 0.01, 1))
    gamma = float(np.clip(np.log(0.45) / np.log(middle), 0.4, 1.0)) if middle < 0.45 else 1.0
    return (gain, gamma) if gain > 1.1 or gamma < 0.9 else (1.0, 1.0)  # less is not seen


def apply_exposure(image: np.ndarray, gain: float, gamma: float) -> np.ndarray:
    """uint8 in, uint8 out, by a table of 256 levels."""
    table = 255 * np.clip(np.arange(256) / 255 * gain, 0, 1) ** gamma
    return table.round().astype(np.uint8)[image]


def brighten_image(image: np.ndarray) -> ToolOutput:
    """The picture as if more light had been there."""
    gain, gamma = find_exposure(image)
    if (gain, gamma) == (1.0, 1.0):
        return ToolOutput("The picture is not dark; it is given back as it is.", png_file(image))
    text = f"Brightened the picture {gain:.1f} times, with a gamma of {gamma:.2f}; noise in the shadows grows with it."
    return ToolOutput(text, png_file(apply_exposure(image, gain, gamma)))


TOOLS = (
    ToolSpec(
        "local/dehaze-image",
        dehaze_image,
        "Removes haze and fog from a picture. The classical dark channel prior in place of a network: large "
        "white things "
        "are taken for haze.",
        (picture_argument(),),
        "image",
    ),
    ToolSpec(
        "local/brighten-image",
        brighten_image,
        "Brightens a picture taken in low light. Gain and gamma from the picture's own levels.",
        (picture_argument(),),
        "image",
        method="exact",
    ),
)
