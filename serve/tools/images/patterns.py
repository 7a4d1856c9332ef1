"""Textures and sheet music."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from scipy.signal import find_peaks

from serve.tools.images.outlines import to_gray
from serve.tools.spec import ToolOutput, ToolSpec, picture_argument

MIN_REGULARITY = 0.25  # height of the autocorrelation's second peak
MIN_SIDE_PX = 14  # a smaller picture shows no period twice
_NOTE_NAMES = ("C", "D", "E", "F", "G", "A", "B")
_BOTTOM_LINE = 4 * 7 + 2  # E4, counted in steps of the scale from C0: the bottom line in the treble clef


def _autocorrelation(gray: np.ndarray) -> np.ndarray:
    """float32 [H, W] with 1 at its middle; less what a smooth change of light gives."""
    values = gray.astype(np.float32) - cv2.GaussianBlur(gray, (0, 0), max(gray.shape) / 6).astype(np.float32)
    values -= values.mean()
    power = np.abs(np.fft.fft2(values, (2 * gray.shape[0], 2 * gray.shape[1]))) ** 2
    full = np.fft.fftshift(np.fft.ifft2(power).real)
    height, width = gray.shape
    part = full[height - height // 2 : height + height // 2, width - width // 2 : width + width // 2]
    y, x = np.mgrid[-(height // 2) : height // 2, -(width // 2) : width // 2]
    overlap = (height - np.abs(y)) * (width - np.abs(x)) / (height * width)  # fewer pixels meet at a distance
    return part / (overlap * full.max() + 1e-9)


def find_repeats(gray: np.ndarray) -> list[tuple[float, float, float]]:
    """(regularity 0 to 1, period in pixels, direction in degrees) of up to two independent repeats, the strongest
    first."""
    smooth = cv2.GaussianBlur(gray, (0, 0), 2.0)  # threads of a cloth are no pattern of it
    if smooth.std() < 1.0 or min(gray.shape) < MIN_SIDE_PX:
        return []
    correlation = _autocorrelation(smooth)
    height, width = correlation.shape
    y, x = np.mgrid[-(height // 2) : height - height // 2, -(width // 2) : width - width // 2]
    peaks = (correlation == cv2.dilate(correlation, np.ones((5, 5)))) & ((y > 0) | ((y == 0) & (x > 0)))
    peaks &= np.hypot(x, y) >= 6
    rows, columns = np.nonzero(peaks & (correlation > MIN_REGULARITY))
    strengths = correlation[rows, columns]
    repeats: list[tuple[float, float, float]] = []
    if len(strengths) == 0:
        return repeats
    # of peaks nearly as high as the highest, the nearest is the period and the others its multiples
    order = np.argsort(np.hypot(y[rows, columns], x[rows, columns]))
    for index in order:
        if strengths[index] < 0.8 * strengths.max():
            continue
        dy, dx = float(y[rows[index], columns[index]]), float(x[rows[index], columns[index]])
        angle = np.rad2deg(np.arctan2(dy, dx)) % 180
        if all(30 < abs(angle - other) < 150 for _, _, other in repeats):
            repeats.append((float(strengths[index]), float(np.hypot(dy, dx)), float(angle)))
        if len(repeats) == 2:
            break
    return repeats


def find_stripe_period(gray: np.ndarray, across: float) -> list[tuple[float, float, float]]:
    """As `find_repeats`, for stripes: the first high peak of the autocorrelation in the direction `across` (radians).

    Along a stripe the picture repeats at every distance, so a peak in two dimensions would be a ridge.
    """
    if min(gray.shape) < MIN_SIDE_PX:
        return []
    correlation = _autocorrelation(cv2.GaussianBlur(gray, (0, 0), 2.0))
    height, width = correlation.shape
    distance = np.arange(0, min(height, width) // 2 - 2, 0.5, dtype=np.float32)
    x = (width // 2 + distance * np.cos(across)).astype(np.float32)[None]
    y = (height // 2 + distance * np.sin(across)).astype(np.float32)[None]
    profile = cv2.remap(correlation.astype(np.float32), x, y, cv2.INTER_LINEAR)[0]
    peaks, _ = find_peaks(profile, height=MIN_REGULARITY, distance=6)
    peaks = peaks[distance[peaks] >= 4]
    if len(peaks) == 0:
        return []
    first = int(peaks[profile[peaks] >= 0.8 * profile[peaks].max()][0])
    return [(float(profile[first]), float(distance[first]), float(np.rad2deg(across) % 180))]


def classify_texture(image: np.ndarray) -> tuple[str, list[tuple[float, float, float]]]:
    """ "plain", "striped", "checked" (two directions) or "irregular", and its repeats."""
    gray = to_gray(image)
    if gray.std() < 4:
        return "plain", []
    gx, gy = cv2.Sobel(gray, cv2.CV_32F, 1, 0), cv2.Sobel(gray, cv2.CV_32F, 0, 1)
    xx, yy, xy = (gx * gx).mean(), (gy * gy).mean(), (gx * gy).mean()
    coherence = float(np.hypot(xx - yy, 2 * xy) / (xx + yy + 1e-9))  # 1: all edges run one way
    if coherence > 0.7:
        return "striped", find_stripe_period(gray, float(0.5 * np.arctan2(2 * xy, xx - yy)))
    repeats = find_repeats(gray)
    return ("checked" if repeats else "irregular"), repeats


def describe_texture(image: np.ndarray) -> ToolOutput:
    """Kind, period and direction of the pattern, contrast and main colours."""
    kind, repeats = classify_texture(image)
    gray = to_gray(image)
    samples = cv2.resize(image, (32, 32), interpolation=cv2.INTER_AREA).reshape(-1, 3).astype(np.float32)
    criteria = (cv2.TERM_CRITERIA_MAX_ITER + cv2.TERM_CRITERIA_EPS, 20, 1.0)
    cv2.setRNGSeed(0)
    _, owners, centers = cv2.kmeans(samples, 2, np.zeros(0), criteria, 3, cv2.KMEANS_PP_CENTERS)
    order = np.argsort(-np.bincount(owners.ravel(), minlength=2))
    colors = " and ".join("#{:02x}{:02x}{:02x}".format(*centers[index].round().astype(int)) for index in order)
    periods = " and ".join(f"every {period:.0f} pixels at {angle:.0f} degrees" for _, period, angle in repeats)
    repeat = f"It repeats {periods}" if repeats else "It does not repeat"
    return ToolOutput(
        f"A {kind} texture. {repeat}; contrast {gray.std():.0f} grey levels, main colours {colors}. By classical "
        "statistics (autocorrelation and gradients); it does not name the material."
    )


@dataclass(frozen=True)
class Staff:
    """Five lines and the heads of the notes on them.

    Attributes:
        top_px: row of the top line.
        gap_px: distance of the lines.
        heads: (x, y) of the middle of each head, from left to right.
    """

    top_px: float
    gap_px: float
    heads: tuple[tuple[float, float], ...]

    def name_note(self, y: float) -> str:
        """The note at row `y` in the treble clef, such as "G4"."""
        step = _BOTTOM_LINE + round((self.top_px + 4 * self.gap_px - y) / (self.gap_px / 2))
        return f"{_NOTE_NAMES[step % 7]}{step // 7}"


def find_staves(image: np.ndarray) -> list[Staff]:
    """Staves of printed music on light paper, from top to bottom."""
    gray = to_gray(image)
    level, _ = cv2.threshold(gray, 0, 255, cv2.THRESH_OTSU)
    ink = (gray <= level).astype(np.uint8)
    covered = ink.mean(axis=1) > 0.6
    rows = np.flatnonzero(covered)
    groups = np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1) if len(rows) else []
    lines = [(float(group.mean()), len(group)) for group in groups]
    staves = []
    index = 0
    while index + 5 <= len(lines):
        part = np.array([line for line, _ in lines[index : index + 5]])
        gaps = np.diff(part)
        if gaps.max() - gaps.min() <= max(2.0, 0.2 * gaps.mean()):
            thickness = max(thick for _, thick in lines[index : index + 5])
            heads = _find_heads(ink, part, float(gaps.mean()), thickness)
            staves.append(Staff(float(part[0]), float(gaps.mean()), heads))
            index += 5
        else:
            index += 1
    return staves


def _find_heads(ink: np.ndarray, lines: np.ndarray, gap: float, thickness: int) -> tuple[tuple[float, float], ...]:
    """Heads within four gaps of the staff: what is left of the ink without lines and stems, with rings filled."""
    first, last = max(0, int(lines[0] - 4 * gap)), min(len(ink), int(lines[-1] + 4 * gap) + 1)
    part = ink[first:last].copy()
    for line in lines:
        top = round(line - first - (thickness - 1) / 2)
        band = slice(top, top + thickness)
        above, below = part[top - 1] if top > 0 else 0, part[min(top + thickness, len(part) - 1)]
        part[band] &= (above | below)[None]  # ink that goes on beside the line is not the line's
    filled = part.copy()
    contours, tree = cv2.findContours(part, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    parents = [] if tree is None else np.asarray(tree).reshape(-1, 4)[:, 3].tolist()
    for contour, parent in zip(contours, parents, strict=True):
        if parent >= 0 and cv2.contourArea(contour) < 1.5 * gap * gap:  # the hole of a half note
            cv2.drawContours(filled, [contour], -1, 1, -1)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (max(3, round(0.75 * gap)), max(3, round(0.6 * gap))))
    heads = cv2.morphologyEx(filled, cv2.MORPH_OPEN, kernel)
    count, _, sizes, centers = cv2.connectedComponentsWithStats(heads)
    found = []
    for number in range(1, count):
        width, height, area = sizes[number, 2:5]
        if 0.7 * gap <= width <= 2.2 * gap and height <= 1.7 * gap and area >= 0.4 * gap * gap:
            found.append((float(centers[number][0]), float(centers[number][1] + first)))
    return tuple(sorted(found))


def read_staves(image: np.ndarray) -> ToolOutput:
    """Number of staves and the notes on each."""
    staves = find_staves(image)
    if not staves:
        return ToolOutput("Found no staff of five lines in the picture.")
    notes = [" ".join(staff.name_note(y) for _, y in staff.heads) or "none" for staff in staves]
    listed = "; ".join(f"staff {number}: {names}" for number, names in enumerate(notes, start=1))
    return ToolOutput(
        f"Found {len(staves)} staves with {sum(len(staff.heads) for staff in staves)} notes. In the treble clef "
        f"they read "
        f"{listed}. By classical line removal: clefs, accidentals and lengths are not read."
    )


TOOLS = (
    ToolSpec(
        "local/describe-texture",
        describe_texture,
        "Classifies cloth and other textures by their statistics. Tells plain, striped, checked and irregular "
        "ones apart, "
        "with period and colours.",
        (picture_argument(),),
        "text",
    ),
    ToolSpec(
        "local/read-staves",
        read_staves,
        "Finds the staves and notes of sheet music. Classical: heads of notes by line removal, read in the "
        "treble clef.",
        (picture_argument(),),
        "text",
    ),
)
