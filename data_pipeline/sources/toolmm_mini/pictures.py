"""Every kind of still picture: photos, what is derived from a scene (conditions), and photos with a fault (quality)."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from data_pipeline.sources.toolmm_mini.domains import DOMAIN_RENDERERS, render_indoor, render_portrait, render_street
from data_pipeline.sources.toolmm_mini.emblems import EMBLEM_RENDERERS
from data_pipeline.sources.toolmm_mini.scenes import LIMBS, SIZE_PX, Scene, random_person, render_scene

# The OpenPose drawing has one hue per limb, in this order around the colour circle.
_LIMB_COLORS = cv2.cvtColor(
    np.array([[[i * 179 // len(LIMBS), 255, 255] for i in range(len(LIMBS))]], np.uint8), cv2.COLOR_HSV2RGB
)[0]
# Flat colours of a segment map, after ADE20K's palette.
_SEGMENT_COLORS = np.array(
    [[120, 120, 120], [80, 50, 50], [180, 120, 120], [6, 230, 230], [4, 200, 3], [204, 5, 255], [230, 230, 230],
     [4, 250, 7], [255, 6, 51], [150, 5, 61], [0, 82, 255], [255, 224, 0]], np.uint8,
)  # fmt: skip


def render_photo(rng: np.random.Generator) -> np.ndarray:
    """A sound photo of solids, a room, a street or a person, uint8 (H, W, 3)."""
    match rng.integers(4):
        case 0:
            return render_indoor(rng)
        case 1:
            return render_street(rng)
        case 2:
            return render_portrait(rng)
        case _:
            return render_scene(rng, with_person=rng.random() < 0.3).photo


def _scene(rng: np.random.Generator) -> Scene:
    return render_scene(rng, with_person=rng.random() < 0.25)


def _gray_to_rgb(gray: np.ndarray) -> np.ndarray:
    return np.repeat(gray.astype(np.uint8)[..., None], 3, axis=2)


def draw_canny(rng: np.random.Generator) -> np.ndarray:
    """Canny edges: thin white lines on black."""
    return _gray_to_rgb(cv2.Canny(cv2.cvtColor(_scene(rng).photo, cv2.COLOR_RGB2GRAY), 60, 150))


def draw_soft_edge(rng: np.random.Generator) -> np.ndarray:
    """Soft edges like HED's: broad grey ridges on black."""
    gray = cv2.GaussianBlur(cv2.cvtColor(_scene(rng).photo, cv2.COLOR_RGB2GRAY), (0, 0), 2.0).astype(np.float32)
    ridge = np.hypot(cv2.Sobel(gray, cv2.CV_32F, 1, 0), cv2.Sobel(gray, cv2.CV_32F, 0, 1))
    ridge = cv2.GaussianBlur(ridge, (0, 0), 2.5)
    return _gray_to_rgb(255 * np.clip(ridge / (0.6 * ridge.max() + 1e-6), 0, 1) ** 0.8)


def _outlines(scene: Scene) -> list[np.ndarray]:
    outlines = []
    for label in range(1, int(scene.segments.max()) + 1):
        mask = (scene.segments == label).astype(np.uint8)
        found, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        outlines.extend(contour for contour in found if len(contour) > 30)
    return outlines


def draw_scribble(rng: np.random.Generator) -> np.ndarray:
    """A child's scribble of the outlines: thick wobbly white strokes on black."""
    canvas = np.zeros((SIZE_PX, SIZE_PX), np.uint8)
    for contour in _outlines(_scene(rng)):
        points = contour[:: max(8, len(contour) // 24), 0].astype(np.float32)
        points += rng.normal(0, 3.0, points.shape)
        cv2.polylines(canvas, [points.astype(np.int32)], True, 255, int(rng.integers(6, 10)), cv2.LINE_AA)
    return _gray_to_rgb(canvas)


def draw_line_drawing(rng: np.random.Generator) -> np.ndarray:
    """A pen drawing of the outlines with some hatching: dark lines on white paper."""
    scene = _scene(rng)
    canvas = np.full((SIZE_PX, SIZE_PX), 250, np.uint8)
    for label in range(2, int(scene.segments.max()) + 1):
        if rng.random() < 0.5:
            y, x = np.nonzero(scene.segments == label)
            canvas[y, x] = np.where((x + y) % 9 == 0, 120, 250)
    cv2.polylines(canvas, [contour.astype(np.int32) for contour in _outlines(scene)], True, 30, 2, cv2.LINE_AA)
    return _gray_to_rgb(canvas)


def draw_depth(rng: np.random.Generator) -> np.ndarray:
    """A depth map: near is white."""
    return _gray_to_rgb(255 * (1 - _scene(rng).depth))


def draw_normals(rng: np.random.Generator) -> np.ndarray:
    """A normal map: x, y, z as red, green, blue."""
    return ((_scene(rng).normals * 0.5 + 0.5) * 255).astype(np.uint8)


def draw_segments(rng: np.random.Generator) -> np.ndarray:
    """A segment map: one flat colour per thing."""
    palette = np.concatenate([_SEGMENT_COLORS[:1], rng.permutation(_SEGMENT_COLORS[1:])])
    return palette[_scene(rng).segments % len(palette)]


def draw_pose(rng: np.random.Generator) -> np.ndarray:
    """A pose: coloured limbs and joints of one or two persons on black."""
    canvas = np.zeros((SIZE_PX, SIZE_PX, 3), np.uint8)
    for _ in range(int(rng.integers(1, 3))):
        joints = {name: (round(x), round(y)) for name, (x, y) in random_person(rng).items()}
        for (start, end), color in zip(LIMBS, _LIMB_COLORS.tolist(), strict=True):
            cv2.line(canvas, joints[start], joints[end], [int(c * 0.8) for c in color], 5, cv2.LINE_AA)
            cv2.circle(canvas, joints[end], 4, color, -1, cv2.LINE_AA)
    return canvas


def _streak_kernel(length: int, angle: float) -> np.ndarray:
    """A line of `length` pixels through the middle, summing to 1."""
    kernel = np.zeros((length, length), np.float32)
    middle = (length - 1) / 2
    dx, dy = middle * np.cos(angle), middle * np.sin(angle)
    cv2.line(kernel, (round(middle - dx), round(middle - dy)), (round(middle + dx), round(middle + dy)), 1.0, 1)
    return kernel / kernel.sum()


def add_blur(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Motion blur of a shaken camera."""
    return cv2.filter2D(picture, -1, _streak_kernel(int(rng.integers(13, 21)) * 2 + 1, rng.uniform(0, np.pi)))


def add_haze(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Haze by the usual model (Koschmieder): I = J t + A (1 - t), thicker towards the top of the picture."""
    far = np.linspace(1.0, rng.uniform(0.3, 0.6), picture.shape[0], dtype=np.float32)[:, None, None]
    clear = np.exp(-rng.uniform(1.3, 2.0) * far)
    return (picture * clear + rng.uniform(200, 232) * (1 - clear)).astype(np.uint8)


def add_rain(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Bright slanting streaks."""
    height, width = picture.shape[:2]
    seeds = (rng.random((height, width)) > 0.988).astype(np.float32) * 255
    streaks = cv2.filter2D(
        seeds, -1, _streak_kernel(int(rng.integers(9, 14)) * 2 + 1, np.pi / 2 + rng.uniform(-0.35, 0.35))
    )
    streaks = np.clip(streaks * 7, 0, 190)[..., None]
    return np.clip(picture * 0.85 + streaks, 0, 255).astype(np.uint8)


def add_noise(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Strong sensor noise."""
    noise = rng.standard_normal(picture.shape, np.float32) * rng.uniform(42, 65)
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


def add_darkness(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Too little light."""
    dark = 255 * (picture / 255.0) ** rng.uniform(1.3, 1.7) * rng.uniform(0.1, 0.2)
    return dark.clip(0, 255).astype(np.uint8)


def add_pixelation(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Far too few pixels, blown up."""
    height, width = picture.shape[:2]
    block = rng.uniform(9, 13)
    small = cv2.resize(picture, (round(width / block), round(height / block)), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST)


def _faulty(
    fault: Callable[[np.ndarray, np.random.Generator], np.ndarray],
) -> Callable[[np.random.Generator], np.ndarray]:
    def render(rng: np.random.Generator) -> np.ndarray:
        return fault(render_photo(rng), rng)

    return render


PICTURE_RENDERERS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "canny": draw_canny,
    "soft_edge": draw_soft_edge,
    "scribble": draw_scribble,
    "line_drawing": draw_line_drawing,
    "depth": draw_depth,
    "normals": draw_normals,
    "segments": draw_segments,
    "pose": draw_pose,
    "blurred": _faulty(add_blur),
    "hazy": _faulty(add_haze),
    "rainy": _faulty(add_rain),
    "noisy": _faulty(add_noise),
    "dark": _faulty(add_darkness),
    "pixelated": _faulty(add_pixelation),
    **DOMAIN_RENDERERS,
    **EMBLEM_RENDERERS,
}
"""Kind of picture -> function from a random generator to an RGB picture, uint8 (`SIZE_PX`, `SIZE_PX`, 3)."""
