"""Every kind of video clip: what moves, and moving pictures with a fault.

A clip is two seconds of small frames cut out of a larger picture. The encoder sees the first and the last frame of it,
so each motion starts and ends in clearly different states; as in a real camera, frames of fast motion are smeared.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from data_pipeline.sources.toolmm_mini.pictures import (
    add_darkness,
    add_haze,
    add_pixelation,
    render_photo,
)
from data_pipeline.sources.toolmm_mini.scenes import random_color

WIDTH_PX, HEIGHT_PX = 160, 120
RATE_FPS = 10
FRAMES = 20

Render = Callable[[np.random.Generator], np.ndarray]


def _window(picture: np.ndarray, x: float, y: float, width: float = WIDTH_PX) -> np.ndarray:
    """Cut a 4:3 window with its corner at (x, y) out of `picture` and bring it to the frame size."""
    scale = width / WIDTH_PX
    # OpenCV maps output to input pixels with WARP_INVERSE_MAP.
    warp = np.array([[scale, 0, x], [0, scale, y]], np.float32)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(picture, warp, (WIDTH_PX, HEIGHT_PX), flags=flags, borderMode=cv2.BORDER_REPLICATE)


def _corner(picture: np.ndarray, rng: np.random.Generator, width: float = WIDTH_PX) -> tuple[float, float]:
    return rng.uniform(0, picture.shape[1] - width), rng.uniform(0, picture.shape[0] - width * 0.75)


def render_pan(rng: np.random.Generator) -> np.ndarray:
    """The camera sweeps sideways and back, faster than the shutter."""
    picture = render_photo(rng)
    y, reach = rng.uniform(10, 120), rng.uniform(50, 90)
    smear = np.zeros((1, 2 * int(rng.integers(9, 14)) + 1), np.float32)
    smear[:] = 1 / smear.shape[1]
    sweeps = 1.5 * np.pi * np.linspace(0, 1, FRAMES) + rng.uniform(-0.5, 0.3)
    return np.stack([cv2.filter2D(_window(picture, 48 + reach * 0.5 * np.sin(s), y), -1, smear) for s in sweeps])


def render_zoom(rng: np.random.Generator) -> np.ndarray:
    """The camera zooms in or out; frames are smeared from the middle outwards."""
    picture = render_photo(rng)
    widths = np.geomspace(rng.uniform(215, 245), rng.uniform(80, 105), FRAMES)
    if rng.random() < 0.5:
        widths = widths[::-1]
    x, y = rng.uniform(112, 144), rng.uniform(105, 150)
    frames = []
    for width in widths:
        exposures = [_window(picture, x - w / 2, y - w * 0.375, w) for w in width * np.linspace(0.78, 1.22, 9)]
        frames.append(np.mean(exposures, axis=0).astype(np.uint8))
    return np.stack(frames)


def render_bounce(rng: np.random.Generator) -> np.ndarray:
    """A bright ball bounces through a still picture."""
    picture = render_photo(rng)
    background = _window(picture, *_corner(picture, rng))
    radius, color = int(rng.integers(15, 22)), random_color(rng, 0, 256)
    color[rng.integers(3)] = 255
    xs = np.linspace(rng.uniform(18, 40), rng.uniform(118, 142), FRAMES)
    if rng.random() < 0.5:
        xs = xs[::-1]
    heights = np.abs(np.sin(np.linspace(0.3, 2.6 * np.pi, FRAMES) + rng.uniform(0, 1))) * rng.uniform(50, 75)
    frames = []
    for x, height in zip(xs, heights, strict=True):
        frame = background.copy()
        center = (int(x), int(HEIGHT_PX - radius - 2 - height))
        cv2.circle(frame, center, radius, color.tolist(), -1, cv2.LINE_AA)
        cv2.circle(frame, center, radius, (10, 10, 10), 2, cv2.LINE_AA)
        frames.append(frame)
    return np.stack(frames)


def render_cut(rng: np.random.Generator) -> np.ndarray:
    """A hard cut from one still shot to another."""
    shots = [_window(picture, *_corner(picture, rng)) for picture in (render_photo(rng), render_photo(rng))]
    at = int(rng.integers(6, 15))
    return np.stack([shots[0]] * at + [shots[1]] * (FRAMES - at))


def render_flicker(rng: np.random.Generator) -> np.ndarray:
    """The brightness of a still shot jumps up and down."""
    picture = render_photo(rng)
    shot = _window(picture, *_corner(picture, rng)).astype(np.float32)
    low, high = rng.uniform(0.35, 0.5), rng.uniform(1.1, 1.35)
    levels = np.where(np.arange(FRAMES) % 4 < 2, low, high)
    levels[-1] = low + high - levels[0]
    if rng.random() < 0.5:
        levels = low + high - levels
    return np.stack([np.clip(shot * level, 0, 255).astype(np.uint8) for level in levels])


def render_still(rng: np.random.Generator) -> np.ndarray:
    """Nothing moves."""
    picture = render_photo(rng)
    return np.repeat(_window(picture, *_corner(picture, rng))[None], FRAMES, axis=0)


def _drift(rng: np.random.Generator) -> list[np.ndarray]:
    """A hand-held shot that drifts by a few pixels."""
    picture = render_photo(rng)
    x, y = _corner(picture, rng)
    path = np.cumsum(rng.normal(0, 0.5, (FRAMES, 2)), axis=0)
    return [_window(picture, x + dx, y + dy) for dx, dy in path]


def _faulty(fault: Callable[[np.ndarray, np.random.Generator], np.ndarray]) -> Render:
    def render(rng: np.random.Generator) -> np.ndarray:
        frames = _drift(rng)
        seed = int(rng.integers(2**32))
        # One fault for the whole clip: every frame draws the same parameters.
        return np.stack([fault(frame, np.random.default_rng(seed)) for frame in frames])

    return render


def _grain(frame: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Coarse noise: fine noise would not survive the codec."""
    coarse = rng.standard_normal((HEIGHT_PX // 2, WIDTH_PX // 2, 1)).astype(np.float32) * rng.uniform(32, 48)
    noise = cv2.resize(coarse, (WIDTH_PX, HEIGHT_PX), interpolation=cv2.INTER_NEAREST)[..., None]
    return np.clip(frame + noise, 0, 255).astype(np.uint8)


CLIP_RENDERERS: dict[str, Render] = {
    "pan": render_pan,
    "zoom": render_zoom,
    "bounce": render_bounce,
    "cut": render_cut,
    "flicker": render_flicker,
    "still": render_still,
    "dark_clip": _faulty(add_darkness),
    "grainy_clip": _faulty(_grain),
    "hazy_clip": _faulty(add_haze),
    "blocky_clip": _faulty(add_pixelation),
}
"""Kind of clip -> function from a random generator to RGB frames, uint8 (FRAMES, HEIGHT_PX, WIDTH_PX, 3)."""
