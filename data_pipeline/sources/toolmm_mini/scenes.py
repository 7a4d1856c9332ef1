"""Scenes of textured solids whose depth, normals, segments and joints are known exactly, as float arrays.

A scene is a floor, a back wall, a few solids and sometimes a person. Every picture that a ControlNet-like tool takes as
its condition is derived from one (DESIGN section 5), so a photo and its depth map can show the same thing.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

SIZE_PX = 256

# OpenPose's body joints that a stick person needs, as (x, y) in units of the person's height from the hip, y down.
_REST_POSE = {
    "head": (0.0, -0.47), "neck": (0.0, -0.36), "hip": (0.0, 0.0),
    "l_shoulder": (-0.10, -0.34), "r_shoulder": (0.10, -0.34), "l_hip": (-0.06, 0.0), "r_hip": (0.06, 0.0),
}  # fmt: skip
LIMBS = (
    ("neck", "hip"), ("neck", "head"), ("neck", "l_shoulder"), ("neck", "r_shoulder"),
    ("hip", "l_hip"), ("hip", "r_hip"),
    ("l_shoulder", "l_elbow"), ("l_elbow", "l_wrist"), ("r_shoulder", "r_elbow"), ("r_elbow", "r_wrist"),
    ("l_hip", "l_knee"), ("l_knee", "l_ankle"), ("r_hip", "r_knee"), ("r_knee", "r_ankle"),
)  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """One rendered scene; H = W = `SIZE_PX`.

    Attributes:
        photo: uint8 (H, W, 3), RGB.
        depth: float32 (H, W), 0 at the camera to 1 at the back wall.
        normals: float32 (H, W, 3), unit vectors: x to the right, y up, z to the camera.
        segments: uint8 (H, W), 0 wall, 1 floor, from 2 on the solids.
        people: the joints of every person, name -> (x, y) in pixels.
    """

    photo: np.ndarray
    depth: np.ndarray
    normals: np.ndarray
    segments: np.ndarray
    people: tuple[dict[str, tuple[float, float]], ...]


def random_color(rng: np.random.Generator, low: int = 40, high: int = 235) -> np.ndarray:
    """A random RGB colour, float32 (3,), in 0 to 255."""
    return rng.integers(low, high, 3).astype(np.float32)


def texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A random pattern (stripes, checks, spots or blotches), float32 (height, width) in 0 to 1."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    angle, period = rng.uniform(0, np.pi), rng.uniform(8, 26)
    u = (x * np.cos(angle) + y * np.sin(angle)) * (2 * np.pi / period)
    v = (y * np.cos(angle) - x * np.sin(angle)) * (2 * np.pi / period)
    match rng.integers(4):
        case 0:
            return 0.5 + 0.5 * np.sin(u)
        case 1:
            return ((np.sin(u) > 0) ^ (np.sin(v) > 0)).astype(np.float32)
        case 2:
            return (np.sin(u) * np.sin(v) > 0.55).astype(np.float32)
        case _:
            coarse = rng.random((max(2, height // 14), max(2, width // 14)), dtype=np.float32)
            return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 1)


def random_person(rng: np.random.Generator, size: int = SIZE_PX) -> dict[str, tuple[float, float]]:
    """Joints of a person in a random posture: name -> (x, y) in pixels of a square picture."""
    height = rng.uniform(0.62, 0.85) * size
    origin = (rng.uniform(0.3, 0.7) * size, size * 0.93 - 0.45 * height)
    joints = {name: (origin[0] + x * height, origin[1] + y * height) for name, (x, y) in _REST_POSE.items()}

    def swing(start: str, name: str, length: float, angle: float) -> float:
        x, y = joints[start]
        joints[name] = (x + length * height * np.sin(angle), y + length * height * np.cos(angle))
        return angle

    for side, sign in (("l", -1.0), ("r", 1.0)):
        arm = swing(f"{side}_shoulder", f"{side}_elbow", 0.17, sign * rng.uniform(0.2, 2.4))
        swing(f"{side}_elbow", f"{side}_wrist", 0.16, arm + rng.uniform(-1.2, 1.2))
        leg = swing(f"{side}_hip", f"{side}_knee", 0.22, sign * rng.uniform(0.0, 0.7))
        swing(f"{side}_knee", f"{side}_ankle", 0.21, leg - sign * rng.uniform(0.0, 0.7))
    return joints


def _mask_normals(mask: np.ndarray, roundness: float) -> np.ndarray:
    """Normals (h, w, 3) of a mask blown up like a cushion; a large `roundness` (px) gives a rounder solid."""
    distance = cv2.distanceTransform(mask, cv2.DIST_L2, 3)
    profile = np.sqrt(np.clip(roundness**2 - (roundness - np.minimum(distance, roundness)) ** 2, 0, None))
    profile = cv2.GaussianBlur(profile, (0, 0), 1.5)
    dx, dy = cv2.Sobel(profile, cv2.CV_32F, 1, 0) / 8, cv2.Sobel(profile, cv2.CV_32F, 0, 1) / 8
    normals = np.dstack([-dx, dy, np.ones_like(dx)])
    return normals / np.linalg.norm(normals, axis=2, keepdims=True)


def _solid_mask(rng: np.random.Generator, size: int, base_y: float, scale: float) -> np.ndarray:
    """uint8 (H, W) mask of one ball, box, cone, pillar or prism that stands with its foot at `base_y`."""
    mask = np.zeros((size, size), np.uint8)
    x, half = rng.uniform(0.08, 0.92) * size, scale * rng.uniform(0.6, 1.0)
    tall = half * rng.uniform(1.0, 2.2)
    match rng.integers(5):
        case 0:
            cv2.circle(mask, (int(x), int(base_y - half)), int(half), 1, -1)
        case 1:
            cv2.rectangle(mask, (int(x - half), int(base_y - tall)), (int(x + half), int(base_y)), 1, -1)
        case 2:
            corners = [(x - half, base_y), (x + half, base_y), (x + rng.uniform(-0.4, 0.4) * half, base_y - 1.3 * tall)]
            cv2.fillPoly(mask, [np.array(corners, np.int32)], 1)
        case 3:
            cv2.rectangle(
                mask, (int(x - half * 0.4), int(base_y - 1.6 * tall)), (int(x + half * 0.4), int(base_y)), 1, -1
            )
        case _:
            turns = rng.uniform(0, 6.28) + np.linspace(0, 2 * np.pi, rng.integers(5, 8), endpoint=False)
            ring = np.stack([x + half * np.cos(turns), base_y - half + half * np.sin(turns)], axis=1)
            cv2.fillPoly(mask, [ring.astype(np.int32)], 1)
    return mask


def person_mask(joints: dict[str, tuple[float, float]], size: int = SIZE_PX) -> np.ndarray:
    """uint8 (size, size) mask of a person with limbs of natural thickness."""
    mask = np.zeros((size, size), np.uint8)
    for start, end in LIMBS:
        thickness = 26 if (start, end) == ("neck", "hip") else 11
        cv2.line(mask, _point(joints[start]), _point(joints[end]), 1, thickness * size // 256)
    cv2.circle(mask, _point(joints["head"]), 17 * size // 256, 1, -1)
    return mask


def _point(joint: tuple[float, float]) -> tuple[int, int]:
    return round(joint[0]), round(joint[1])


def render_scene(rng: np.random.Generator, with_person: bool = False) -> Scene:
    """Render one scene of three to six solids, far ones first, and a person in front if asked for."""
    size = SIZE_PX
    horizon = int(rng.uniform(0.35, 0.6) * size)
    depth = np.ones((size, size), np.float32)
    depth[horizon:] = np.linspace(1.0, 0.15, size - horizon, dtype=np.float32)[:, None]
    normals = np.zeros((size, size, 3), np.float32)
    normals[:horizon, :, 2] = 1.0
    normals[horizon:] = (0.0, 0.94, 0.34)
    segments = np.zeros((size, size), np.uint8)
    segments[horizon:] = 1
    albedo = np.empty((size, size, 3), np.float32)
    for rows in (slice(0, horizon), slice(horizon, size)):
        height = rows.stop - rows.start
        pattern = texture(rng, height, size)[..., None]
        albedo[rows] = random_color(rng) * (0.8 + 0.2 * pattern)

    feet = np.sort(rng.uniform(horizon + 8, size - 4, rng.integers(3, 7)))
    masks = []
    for foot in feet:
        nearness = (foot - horizon) / (size - horizon)
        masks.append((_solid_mask(rng, size, foot, 20 + 34 * nearness), foot, 30.0))
    people = ()
    if with_person:
        joints = random_person(rng)
        people = (joints,)
        masks.append((person_mask(joints), size * 0.95, 10.0))
    for index, (mask, foot, roundness) in enumerate(masks):
        inside = mask > 0
        shape = _mask_normals(mask, roundness)
        nearness = (foot - horizon) / (size - horizon)
        depth[inside] = 1.0 - 0.85 * nearness - 0.06 * shape[inside][:, 2]
        normals[inside] = shape[inside]
        segments[inside] = index + 2
        color, second = random_color(rng), random_color(rng)
        pattern = texture(rng, size, size)[inside][:, None]
        albedo[inside] = color * pattern + (0.5 * color + 0.5 * second) * (1 - pattern)

    light = np.array([rng.uniform(-0.7, 0.7), rng.uniform(0.3, 0.8), 0.7], np.float32)
    light /= np.linalg.norm(light)
    shade = 0.45 + 0.65 * np.clip(normals @ light, 0, None)
    photo = np.clip(albedo * shade[..., None], 0, 255).astype(np.uint8)
    return Scene(cv2.GaussianBlur(photo, (0, 0), 0.6), depth.clip(0, 1), normals, segments, people)
