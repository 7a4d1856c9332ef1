"""Photos of five domains (rooms, streets, satellite views, medical scans, portraits), drawn with random parts.

Every function takes a random generator and returns one RGB picture, uint8 (`SIZE_PX`, `SIZE_PX`, 3).
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from data_pipeline.sources.toolmm_mini.scenes import SIZE_PX, random_color, texture

Rgb = tuple[float, float, float]


def _rgb(color: np.ndarray) -> Rgb:
    return float(color[0]), float(color[1]), float(color[2])


def _gray(rng: np.random.Generator, low: int, high: int) -> Rgb:
    value = float(rng.integers(low, high))
    return value, value, value


def gradient(top: np.ndarray, bottom: np.ndarray, size: int = SIZE_PX) -> np.ndarray:
    """A picture that fades from one colour to the other, uint8 (size, size, 3)."""
    mix = np.linspace(0, 1, size, dtype=np.float32)[:, None, None]
    return np.repeat((top * (1 - mix) + bottom * mix).astype(np.uint8), size, axis=1)


def render_indoor(rng: np.random.Generator) -> np.ndarray:
    """A room in one-point perspective with a window, furniture, a lamp and a picture on the wall."""
    n = SIZE_PX
    left, right = int(n * rng.uniform(0.15, 0.3)), int(n * rng.uniform(0.7, 0.85))
    top, bottom = int(n * rng.uniform(0.12, 0.22)), int(n * rng.uniform(0.58, 0.7))
    wall, floor = rng.uniform(130, 225, 3), np.array([rng.uniform(110, 170), rng.uniform(70, 115), rng.uniform(30, 75)])
    picture = np.empty((n, n, 3), np.uint8)
    picture[:] = wall
    for corners, color in (
        ([(0, 0), (n, 0), (right, top), (left, top)], wall * 0.0 + 238),
        ([(0, n), (n, n), (right, bottom), (left, bottom)], floor),
        ([(0, 0), (left, top), (left, bottom), (0, n)], wall * 0.82),
        ([(n, 0), (right, top), (right, bottom), (n, n)], wall * 0.7),
    ):
        cv2.fillPoly(picture, [np.array(corners, np.int32)], _rgb(color))
    for i in range(9):  # floor boards run to the vanishing point
        cv2.line(picture, (int(n * i / 8), n), (int(left + (right - left) * i / 8), bottom), _rgb(floor * 0.7), 1)
    x, y = int(rng.uniform(left + 8, right - 70)), top + int(rng.uniform(10, 22))
    w, h = int(rng.uniform(34, 60)), int(rng.uniform(40, 62))
    cv2.rectangle(picture, (x - 4, y - 4), (x + w + 4, y + h + 4), (250, 250, 250), -1)
    cv2.rectangle(picture, (x, y), (x + w, y + h), (150, 205, 250), -1)
    cv2.line(picture, (x + w // 2, y), (x + w // 2, y + h), (250, 250, 250), 3)
    cv2.line(picture, (x, y + h // 2), (x + w, y + h // 2), (250, 250, 250), 3)
    color = rng.uniform(60, 200, 3)
    x, y, w, h = (
        int(rng.uniform(20, 120)),
        int(rng.uniform(150, 180)),
        int(rng.uniform(80, 120)),
        int(rng.uniform(35, 50)),
    )
    cv2.rectangle(picture, (x, y - h // 2), (x + w, y + h), _rgb(color * 0.8), -1)
    cv2.rectangle(picture, (x + 8, y + 4), (x + w - 8, y + h // 2), _rgb(np.minimum(color * 1.2, 255)), -1)
    cv2.rectangle(picture, (x - 8, y), (x + 8, y + h), _rgb(color * 0.65), -1)
    cv2.rectangle(picture, (x + w - 8, y), (x + w + 8, y + h), _rgb(color * 0.65), -1)
    x, y, w = int(rng.uniform(150, 210)), int(rng.uniform(185, 215)), int(rng.uniform(36, 60))
    cv2.rectangle(picture, (x - w, y), (x + w, y + 8), (105, 62, 30), -1)
    for leg in (x - w + 4, x + w - 8):
        cv2.rectangle(picture, (leg, y + 8), (leg + 5, y + 44), (80, 45, 20), -1)
    cv2.rectangle(picture, (x - 3, y - 40), (x + 3, y), (90, 90, 90), -1)
    shade = np.array([(x - 20, y - 40), (x + 20, y - 40), (x + 11, y - 68), (x - 11, y - 68)], np.int32)
    cv2.fillPoly(picture, [shade], (250, 228, 160))
    return picture


def render_street(rng: np.random.Generator) -> np.ndarray:
    """Sky, a row of buildings with lit windows, a road with lane marks, cars and a tree."""
    n = SIZE_PX
    horizon = int(n * rng.uniform(0.55, 0.66))
    picture = gradient(np.array([90, 150, 225.0]) + rng.uniform(-20, 20), np.array([205, 222, 240.0]))
    x = -int(rng.integers(0, 30))
    while x < n:
        width, top = int(rng.integers(34, 70)), int(rng.uniform(0.05, 0.36) * n)
        color = rng.uniform(90, 190) * np.array([1.0, 0.88, 0.8]) * rng.uniform(0.85, 1.1, 3)
        cv2.rectangle(picture, (x, top), (x + width, horizon), _rgb(color.clip(0, 255)), -1)
        for wy in range(top + 8, horizon - 12, 16):
            for wx in range(x + 6, x + width - 8, 13):
                lit = (245, 225, 140) if rng.random() < 0.3 else (55, 65, 85)
                cv2.rectangle(picture, (wx, wy), (wx + 6, wy + 9), lit, -1)
        x += width + int(rng.integers(0, 5))
    cv2.rectangle(picture, (0, horizon), (n, horizon + 12), (170, 168, 165), -1)
    cv2.rectangle(picture, (0, horizon + 12), (n, n), _gray(rng, 58, 84), -1)
    middle = int(rng.uniform(0.4, 0.6) * n)
    for k in range(5):
        y0, y1 = horizon + 16 + k * 22, horizon + 24 + k * 24
        half = 1 + k * 2
        mark = [(middle - half, y0), (middle + half, y0), (middle + half + 2, y1), (middle - half - 2, y1)]
        cv2.fillPoly(picture, [np.array(mark, np.int32)], (240, 240, 235))
    for _ in range(int(rng.integers(1, 4))):
        y, x = int(rng.uniform(horizon + 28, n - 24)), int(rng.uniform(20, n - 20))
        s, color = 12 + (y - horizon) * 0.25, random_color(rng)
        cv2.rectangle(picture, (int(x - 1.6 * s), int(y - 0.6 * s)), (int(x + 1.6 * s), y), _rgb(color), -1)
        roof = [(x - s, y - 0.6 * s), (x + s, y - 0.6 * s), (x + 0.6 * s, y - 1.2 * s), (x - 0.6 * s, y - 1.2 * s)]
        cv2.fillPoly(picture, [np.array(roof, np.int32)], (40, 50, 70))
        for wheel in (x - s, x + s):
            cv2.circle(picture, (int(wheel), y), int(0.4 * s), (20, 20, 20), -1)
    x = int(rng.choice([rng.uniform(8, 50), rng.uniform(n - 50, n - 8)]))
    cv2.rectangle(picture, (x - 4, horizon - 50), (x + 4, horizon + 12), (92, 62, 36), -1)
    cv2.circle(picture, (x, horizon - 62), int(rng.uniform(20, 30)), (46, 120, 50), -1)
    return picture


def render_satellite(rng: np.random.Generator) -> np.ndarray:
    """Fields from above with a river, roads and roofs."""
    n = SIZE_PX
    seeds = rng.uniform(0, n, (int(rng.integers(8, 16)), 2)).astype(np.float32)
    y, x = np.mgrid[0:n, 0:n].astype(np.float32)
    skew = rng.uniform(0.5, 1.6)
    distance = np.abs(x[..., None] - seeds[:, 0]) + skew * np.abs(y[..., None] - seeds[:, 1])
    owner = distance.argmin(axis=2)
    base = np.stack(
        [rng.uniform(70, 165, len(seeds)), rng.uniform(95, 155, len(seeds)), rng.uniform(45, 90, len(seeds))], 1
    )
    picture = base[owner].astype(np.float32)
    angle = rng.uniform(0, np.pi, len(seeds))
    rows = np.sin((x * np.cos(angle[owner]) + y * np.sin(angle[owner])) * 0.9)
    picture = (picture + 9 * rows[..., None]).clip(0, 255).astype(np.uint8)
    if rng.random() < 0.6:
        xs = np.arange(0, n + 20, 12)
        ys = rng.uniform(0.2, 0.8) * n + 26 * np.sin(xs / rng.uniform(24, 50) + rng.uniform(0, 6))
        cv2.polylines(picture, [np.stack([xs, ys], 1).astype(np.int32)], False, (42, 84, 130), int(rng.integers(9, 18)))
    for _ in range(int(rng.integers(1, 4))):
        a, b = rng.integers(0, n, 2), rng.integers(0, n, 2)
        ends = ((0, int(a[0])), (n, int(a[1]))) if rng.random() < 0.5 else ((int(b[0]), 0), (int(b[1]), n))
        cv2.line(picture, *ends, _gray(rng, 185, 215), int(rng.integers(3, 6)))
    for _ in range(int(rng.integers(8, 24))):
        box = ((rng.uniform(0, n), rng.uniform(0, n)), (rng.uniform(8, 18), rng.uniform(8, 18)), rng.uniform(0, 90))
        roof = (190, 82, 60) if rng.random() < 0.6 else (205, 205, 205)
        cv2.fillPoly(picture, [cv2.boxPoints(box).astype(np.int32)], roof)
    for _ in range(int(rng.integers(20, 60))):
        spot = (int(rng.uniform(0, n)), int(rng.uniform(0, n)))
        cv2.circle(picture, spot, int(rng.integers(2, 5)), (34, 74, 36), -1)
    return picture


def render_medical(rng: np.random.Generator) -> np.ndarray:
    """A grey cross-section with a bright rim, organs, a lesion and speckle."""
    n = SIZE_PX
    picture = np.zeros((n, n), np.uint8)
    center = (int(n * rng.uniform(0.46, 0.54)), int(n * rng.uniform(0.46, 0.54)))
    axes = (int(n * rng.uniform(0.32, 0.44)), int(n * rng.uniform(0.36, 0.45)))
    tilt = rng.uniform(-15, 15)
    cv2.ellipse(picture, center, axes, tilt, 0, 360, int(rng.integers(205, 250)), -1)
    cv2.ellipse(picture, center, (axes[0] - 9, axes[1] - 9), tilt, 0, 360, int(rng.integers(85, 120)), -1)
    for sign in (-1, 1):
        organ = (center[0] + sign * int(axes[0] * rng.uniform(0.3, 0.45)), center[1] + int(rng.uniform(-20, 20)))
        size = (int(axes[0] * rng.uniform(0.2, 0.32)), int(axes[1] * rng.uniform(0.3, 0.5)))
        cv2.ellipse(picture, organ, size, sign * rng.uniform(0, 25), 0, 360, int(rng.integers(28, 62)), -1)
    for _ in range(int(rng.integers(2, 6))):
        spot = (center[0] + int(rng.uniform(-0.5, 0.5) * axes[0]), center[1] + int(rng.uniform(-0.6, 0.6) * axes[1]))
        cv2.ellipse(
            picture,
            spot,
            (int(rng.integers(5, 18)), int(rng.integers(5, 18))),
            0,
            0,
            360,
            int(rng.integers(130, 215)),
            -1,
        )
    speckle = cv2.GaussianBlur(rng.normal(0, 1, (n, n)).astype(np.float32), (0, 0), 1.6) * 45
    scan = cv2.GaussianBlur(picture, (0, 0), 1.8).astype(np.float32)
    scan = np.where(scan > 10, scan + speckle, scan).clip(0, 255).astype(np.uint8)
    return np.repeat(scan[..., None], 3, axis=2)


def render_portrait(rng: np.random.Generator) -> np.ndarray:
    """Head and shoulders of a person in a patterned garment before a plain backdrop."""
    n = SIZE_PX
    backdrop = random_color(rng, 60, 230)
    picture = gradient(backdrop, backdrop * 0.75)
    skin = np.array([rng.uniform(150, 240), 0, 0])
    skin[1:] = skin[0] * np.array([0.78, 0.62])
    hair = np.array([1.0, 0.7, 0.45]) * rng.uniform(20, 170)
    x, y, r = int(n * rng.uniform(0.42, 0.58)), int(n * rng.uniform(0.34, 0.42)), int(n * rng.uniform(0.15, 0.19))
    body = np.zeros((n, n), np.uint8)
    cv2.ellipse(body, (x, n + 6), (int(r * 2.4), int(n - y - r * 1.1)), 0, 180, 360, 1, -1)
    cloth, second, pattern = random_color(rng), random_color(rng), texture(rng, n, n)[..., None]
    garment = (cloth * pattern + second * (1 - pattern)).astype(np.uint8)
    cv2.ellipse(picture, (x, y - r // 5), (int(r * 1.15), int(r * 1.4)), 0, 0, 360, _rgb(hair), -1)
    if rng.random() < 0.5:
        cv2.rectangle(picture, (x - int(r * 1.15), y), (x + int(r * 1.15), y + int(r * 1.8)), _rgb(hair), -1)
    picture[body > 0] = garment[body > 0]
    cv2.rectangle(picture, (x - r // 3, y + r), (x + r // 3, y + int(r * 1.7)), _rgb(skin * 0.86), -1)
    cv2.ellipse(picture, (x, y), (int(r * 0.88), int(r * 1.15)), 0, 0, 360, _rgb(skin), -1)
    cv2.ellipse(picture, (x, y - int(r * 0.55)), (int(r * 0.88), int(r * 0.62)), 0, 180, 360, _rgb(hair), -1)
    for sign in (-1, 1):
        eye = (x + sign * int(r * 0.36), y - int(r * 0.1))
        cv2.ellipse(picture, eye, (int(r * 0.17), int(r * 0.1)), 0, 0, 360, (250, 250, 250), -1)
        cv2.circle(picture, eye, max(2, int(r * 0.08)), (40, 30, 25), -1)
        cv2.line(picture, (eye[0] - 6, eye[1] - 8), (eye[0] + 6, eye[1] - 8), _rgb(hair * 0.6), 2)
    cv2.line(picture, (x, y), (x - 3, y + int(r * 0.3)), _rgb(skin * 0.75), 2)
    cv2.ellipse(picture, (x, y + int(r * 0.55)), (int(r * 0.32), int(r * 0.12)), 0, 0, 180, (170, 60, 60), -1)
    return picture


DOMAIN_RENDERERS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "indoor": render_indoor,
    "street": render_street,
    "satellite": render_satellite,
    "medical": render_medical,
    "portrait": render_portrait,
}
