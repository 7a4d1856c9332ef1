"""Close-up pictures of one category (flowers, fruit, signs, cloth, birds) and pictures that hold something to read.

Every function takes a random generator and returns one RGB picture, uint8 (`SIZE_PX`, `SIZE_PX`, 3).
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from data_pipeline.sources.toolmm_mini.domains import gradient
from data_pipeline.sources.toolmm_mini.scenes import SIZE_PX, random_color, texture

_WORDS = ("invoice", "total", "order", "number", "street", "garden", "winter", "letter", "market", "paper", "ticket")
# Modules of the digits in the left half (set A) and which of A ("L") or its mirror B ("G") the first digit asks for.
_EAN_LEFT = (
    "0001101", "0011001", "0010011", "0111101", "0100011", "0110001", "0101111", "0111011", "0110111", "0001011",
)  # fmt: skip
_EAN_PARITY = (
    "LLLLLL", "LLGLGG", "LLGGLG", "LLGGGL", "LGLLGG", "LGGLLG", "LGGGLL", "LGLGLG", "LGLGGL", "LGGLGL",
)  # fmt: skip
_SWAP = str.maketrans("01", "10")
_FONTS = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_COMPLEX, cv2.FONT_HERSHEY_TRIPLEX)


def _rgb(color: np.ndarray) -> tuple[float, float, float]:
    return float(color[0]), float(color[1]), float(color[2])


def _foliage(rng: np.random.Generator) -> np.ndarray:
    """Out-of-focus leaves, uint8 (H, W, 3)."""
    base = np.array([60, 120, 50.0]) * rng.uniform(0.6, 1.2)
    blotches = cv2.GaussianBlur(rng.normal(0, 1, (SIZE_PX, SIZE_PX)).astype(np.float32), (0, 0), 12) * 300
    return (base + blotches[..., None] * np.array([0.7, 1.0, 0.6])).clip(0, 255).astype(np.uint8)


def render_flower(rng: np.random.Generator) -> np.ndarray:
    """Petals around a disc, before leaves."""
    picture = _foliage(rng)
    x, y, r = (int(v) for v in rng.uniform([105, 95, 52], [150, 140, 82]))
    color, petals, turn = random_color(rng, 110, 255), int(rng.integers(5, 13)), rng.uniform(0, 90)
    cv2.line(picture, (x, y), (x + int(rng.uniform(-25, 25)), SIZE_PX), (50, 110, 40), 7)
    for k in range(petals):
        angle = turn + 360 * k / petals
        middle = (x + int(0.6 * r * np.cos(np.deg2rad(angle))), y + int(0.6 * r * np.sin(np.deg2rad(angle))))
        axes = (int(0.52 * r), int(r * min(0.3, 1.6 / petals)))
        cv2.ellipse(picture, middle, axes, angle, 0, 360, _rgb(color * rng.uniform(0.82, 1.0)), -1)
        cv2.ellipse(picture, middle, axes, angle, 0, 360, _rgb(color * 0.65), 1)
    cv2.circle(picture, (x, y), int(0.26 * r), (225, 180, 40), -1)
    for _ in range(30):
        dot = rng.normal(0, 0.1 * r, 2)
        cv2.circle(picture, (x + int(dot[0]), y + int(dot[1])), 1, (140, 90, 20), -1)
    return picture


def render_fruit(rng: np.random.Generator) -> np.ndarray:
    """Round fruit with highlights on a plate on a table."""
    wood = np.array([150, 105, 66.0]) * rng.uniform(0.7, 1.25)
    grain = cv2.resize(rng.random((SIZE_PX, 6), dtype=np.float32), (SIZE_PX, SIZE_PX))
    picture = (wood * (0.85 + 0.3 * grain[..., None])).clip(0, 255).astype(np.uint8)
    cv2.ellipse(picture, (128, 150), (115, 84), 0, 0, 360, (236, 236, 232), -1)
    cv2.ellipse(picture, (128, 150), (92, 64), 0, 0, 360, (216, 216, 214), 2)
    palette = np.array([[205, 40, 40], [235, 150, 30], [120, 180, 50], [230, 210, 60], [140, 40, 90]], np.float32)
    color = palette[rng.integers(len(palette))]
    for _ in range(int(rng.integers(3, 7))):
        x, y, r = (int(v) for v in rng.uniform([70, 95, 26], [186, 180, 42]))
        shade = color * rng.uniform(0.85, 1.1)
        for step in range(6):
            part = 1 - step / 6
            tone = (shade * (1.05 - 0.45 * part)).clip(0, 255)
            cv2.circle(picture, (x - int(step * r * 0.05), y - int(step * r * 0.06)), int(r * part) + 1, _rgb(tone), -1)
        cv2.circle(picture, (x - r // 3, y - r // 3), max(3, r // 7), (255, 250, 240), -1)
        cv2.line(picture, (x, y - r + 3), (x + 5, y - r - 9), (80, 55, 25), 3)
        cv2.ellipse(picture, (x + 12, y - r - 7), (10, 5), -25, 0, 360, (60, 140, 50), -1)
    return picture


def render_sign(rng: np.random.Generator) -> np.ndarray:
    """A traffic sign on its pole."""
    picture = gradient(np.array([110, 165, 230.0]), np.array([215, 225, 235.0]))
    picture[200:] = (np.array([95, 130, 80]) * rng.uniform(0.7, 1.2)).clip(0, 255).astype(np.uint8)
    x, y, r = (int(v) for v in rng.uniform([105, 85, 58], [150, 115, 82]))
    cv2.rectangle(picture, (x - 5, y), (x + 5, SIZE_PX), (130, 130, 135), -1)
    rim, face, ink = [((205, 30, 35), (250, 250, 250), (20, 20, 20)), ((25, 75, 175), (25, 75, 175), (250, 250, 250)),
                      ((20, 20, 20), (245, 200, 40), (20, 20, 20)), ((205, 30, 35), (205, 30, 35), (250, 250, 250))][
        rng.integers(4)
    ]  # fmt: skip
    corners = int(rng.choice([3, 4, 8, 40]))
    turns = {3: -np.pi / 2, 4: rng.choice([0.0, np.pi / 4]), 8: np.pi / 8, 40: 0.0}[corners]
    ring = np.linspace(0, 2 * np.pi, corners, endpoint=False) + turns
    outline = np.stack([x + r * np.cos(ring), y + r * np.sin(ring)], 1)
    inner = np.array([x, y]) + (outline - np.array([x, y])) * 0.8
    cv2.fillPoly(picture, [outline.astype(np.int32)], rim)
    cv2.fillPoly(picture, [inner.astype(np.int32)], face)
    match rng.integers(3):
        case 0:
            label = str(rng.choice(["30", "50", "80", "P", "!"]))
            scale = r / 40
            (w, h), _ = cv2.getTextSize(label, cv2.FONT_HERSHEY_DUPLEX, scale, 4)
            cv2.putText(picture, label, (x - w // 2, y + h // 2), cv2.FONT_HERSHEY_DUPLEX, scale, ink, 4)
        case 1:
            tip = (x + int(rng.choice([-1, 1])) * r // 3, y - r // 4)
            cv2.arrowedLine(picture, (x, y + r // 3), tip, ink, 7, tipLength=0.5)
        case _:
            cv2.rectangle(picture, (x - r // 2, y - r // 9), (x + r // 2, y + r // 9), ink, -1)
    return picture


def render_fabric(rng: np.random.Generator) -> np.ndarray:
    """Woven cloth that fills the frame."""
    n = SIZE_PX
    y, x = np.mgrid[0:n, 0:n].astype(np.float32)
    first, second, third = random_color(rng), random_color(rng), random_color(rng)
    period = rng.uniform(26, 56)
    across, along = np.sin(2 * np.pi * x / period), np.sin(2 * np.pi * y / period)
    match rng.integers(3):
        case 0:  # tartan
            mix_x, mix_y = (across > rng.uniform(-0.3, 0.5))[..., None], (along > rng.uniform(-0.3, 0.5))[..., None]
            cloth = 0.5 * np.where(mix_x, first, second) + 0.5 * np.where(mix_y, first, third)
        case 1:  # herringbone
            zigzag = np.sin(2 * np.pi * (x + np.abs((y % period) - period / 2)) / (period / 2))
            cloth = np.where(zigzag[..., None] > 0, first, second)
        case _:  # dots on a grid
            cloth = np.where((across * along > 0.45)[..., None], third, first)
    thread = 0.8 + 0.14 * np.sin(x * 2 * np.pi / 5) + 0.14 * np.sin(y * 2 * np.pi / 5)
    return (cloth * thread[..., None]).clip(0, 255).astype(np.uint8)


def render_bird(rng: np.random.Generator) -> np.ndarray:
    """A bird on a branch before the sky."""
    sky = np.array([120, 185, 235.0]) * rng.uniform(0.85, 1.05)
    picture = gradient(sky, np.minimum(sky * 1.2, 255))
    x, y, s = (int(v) for v in rng.uniform([100, 110, 46], [156, 140, 64]))
    side, body = int(rng.choice([-1, 1])), random_color(rng, 40, 220)
    perch = y + int(0.78 * s)
    cv2.line(picture, (0, perch + int(rng.uniform(-12, 12))), (SIZE_PX, perch + 4), (96, 66, 40), 9)
    for _ in range(int(rng.integers(3, 9))):
        leaf = (int(rng.uniform(0, 256)), perch + int(rng.uniform(-16, 20)))
        cv2.ellipse(picture, leaf, (13, 6), rng.uniform(0, 180), 0, 360, (58, 136, 54), -1)
    tail = [
        (x - side * s, y),
        (x - side * int(2.0 * s), y + int(0.3 * s)),
        (x - side * int(1.9 * s), y + int(0.6 * s)),
        (x, y + s // 2),
    ]
    cv2.fillPoly(picture, [np.array(tail, np.int32)], _rgb(body * 0.6))
    cv2.ellipse(picture, (x, y), (int(1.15 * s), int(0.72 * s)), side * -12, 0, 360, _rgb(body), -1)
    belly = (x + side * s // 4, y + s // 4)
    cv2.ellipse(
        picture, belly, (int(0.7 * s), int(0.4 * s)), side * -12, 0, 360, _rgb(np.minimum(body * 1.4 + 25, 255)), -1
    )
    cv2.ellipse(
        picture, (x - side * s // 4, y), (int(0.75 * s), int(0.36 * s)), side * 18, 0, 360, _rgb(body * 0.72), -1
    )
    head = (x + side * int(0.95 * s), y - int(0.6 * s))
    cv2.circle(picture, head, int(0.46 * s), _rgb(np.minimum(body * 1.15, 255)), -1)
    beak = [
        (head[0] + side * int(0.4 * s), head[1] - 6),
        (head[0] + side * int(0.86 * s), head[1] + 4),
        (head[0] + side * int(0.4 * s), head[1] + 9),
    ]
    cv2.fillPoly(picture, [np.array(beak, np.int32)], (235, 165, 40))
    cv2.circle(picture, (head[0] + side * int(0.14 * s), head[1] - 4), 5, (15, 15, 15), -1)
    for offset in (-10, 10):
        cv2.line(picture, (x + offset, y + int(0.6 * s)), (x + offset, perch), (200, 130, 50), 3)
    return picture


def _paper(rng: np.random.Generator) -> np.ndarray:
    shade = rng.uniform(228, 254) * np.array([1.0, 0.985, rng.uniform(0.9, 0.99)])
    return np.broadcast_to(shade, (SIZE_PX, SIZE_PX, 3)).astype(np.uint8).copy()


def render_text(rng: np.random.Generator) -> np.ndarray:
    """Lines of printed words on paper."""
    picture = _paper(rng)
    font, scale = _FONTS[rng.integers(len(_FONTS))], rng.uniform(0.55, 0.85)
    y, step = int(rng.uniform(28, 44)), int(rng.uniform(30, 40))
    while y < SIZE_PX - 8:
        line = " ".join(rng.choice(_WORDS, 3))
        cv2.putText(picture, line, (int(rng.uniform(6, 18)), y), font, scale, (25, 25, 35), 1, cv2.LINE_AA)
        y += step
    return picture


def render_digit(rng: np.random.Generator) -> np.ndarray:
    """One large handwritten digit, white on black."""
    picture = np.zeros((SIZE_PX, SIZE_PX, 3), np.uint8)
    label, scale = str(rng.integers(10)), rng.uniform(5.5, 7.5)
    thickness = int(rng.integers(16, 26))
    (w, h), _ = cv2.getTextSize(label, cv2.FONT_HERSHEY_SIMPLEX, scale, thickness)
    origin = (128 - w // 2 + int(rng.uniform(-18, 18)), 128 + h // 2 + int(rng.uniform(-18, 18)))
    cv2.putText(picture, label, origin, cv2.FONT_HERSHEY_SIMPLEX, scale, (255, 255, 255), thickness, cv2.LINE_AA)
    slant = np.array([[1, rng.uniform(-0.25, 0.25), 0], [rng.uniform(-0.12, 0.12), 1, 0]], np.float32)
    slant[:, 2] = 128 - slant[:, :2] @ np.array([128, 128])
    return cv2.GaussianBlur(cv2.warpAffine(picture, slant, (SIZE_PX, SIZE_PX)), (0, 0), 1.5)


def _ean13_modules(digits: list[int]) -> str:
    """The 95 modules of an EAN-13 code, "1" for black (GS1 General Specifications, section 5.2)."""
    left = [_EAN_LEFT[d][::-1].translate(_SWAP) if even == "G" else _EAN_LEFT[d]
            for d, even in zip(digits[1:7], _EAN_PARITY[digits[0]], strict=True)]  # fmt: skip
    right = [_EAN_LEFT[d].translate(_SWAP) for d in digits[7:]]
    return "101" + "".join(left) + "01010" + "".join(right) + "101"


def render_barcode(rng: np.random.Generator) -> np.ndarray:
    """A valid EAN-13 bar code with its number."""
    picture = _paper(rng)
    digits = [int(d) for d in rng.integers(0, 10, 12)]
    digits.append(-sum(d * (1, 3)[i % 2] for i, d in enumerate(digits)) % 10)
    x, top, bottom = int(rng.uniform(20, 44)), int(rng.uniform(40, 70)), int(rng.uniform(176, 206))
    for index, module in enumerate(_ean13_modules(digits)):
        if module == "1":
            cv2.rectangle(picture, (x + 2 * index, top), (x + 2 * index + 1, bottom), (10, 10, 10), -1)
    number = "".join(map(str, digits))
    cv2.putText(picture, number, (x + 6, bottom + 24), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (10, 10, 10), 1, cv2.LINE_AA)
    return picture


def render_score(rng: np.random.Generator) -> np.ndarray:
    """Two staves of sheet music."""
    picture = _paper(rng)
    gap = int(rng.integers(9, 12))
    for top in (int(rng.uniform(38, 58)), int(rng.uniform(148, 172))):
        for k in range(5):
            cv2.line(picture, (8, top + k * gap), (SIZE_PX - 8, top + k * gap), (30, 30, 30), 1)
        cv2.ellipse(picture, (24, top + 2 * gap), (7, 2 * gap), 10, 30, 330, (15, 15, 15), 2)
        x = 50
        while x < SIZE_PX - 20:
            y = top + int(rng.integers(0, 9)) * gap // 2
            cv2.ellipse(picture, (x, y), (7, 5), -20, 0, 360, (15, 15, 15), -1 if rng.random() < 0.75 else 2)
            stem = -3 * gap if y > top + 2 * gap else 3 * gap
            edge = x + 6 if stem < 0 else x - 6
            cv2.line(picture, (edge, y), (edge, y + stem), (15, 15, 15), 2)
            x += int(rng.integers(22, 38))
    return picture


def render_painting(rng: np.random.Generator) -> np.ndarray:
    """Broad strokes of a few colours: a picture that no family asks about, for questions that words decide."""
    n = SIZE_PX
    picture = (random_color(rng)[None, None] * (0.7 + 0.3 * texture(rng, n, n)[..., None])).astype(np.uint8)
    palette = [random_color(rng) for _ in range(5)]
    for _ in range(int(rng.integers(60, 120))):
        a, reach = rng.uniform(0, n, 2), rng.uniform(-60, 60, 2)
        color = palette[rng.integers(5)] * rng.uniform(0.8, 1.1)
        end = (int(a[0] + reach[0]), int(a[1] + reach[1]))
        cv2.line(picture, (int(a[0]), int(a[1])), end, _rgb(color.clip(0, 255)), int(rng.integers(5, 16)), cv2.LINE_AA)
    return picture


EMBLEM_RENDERERS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "flower": render_flower,
    "fruit": render_fruit,
    "sign": render_sign,
    "fabric": render_fabric,
    "bird": render_bird,
    "text": render_text,
    "digit": render_digit,
    "barcode": render_barcode,
    "score": render_score,
    "painting": render_painting,
}
