"""Poses of people: joints and limbs as OpenPose draws them, which is what models that follow a pose were trained on."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import cv2
import numpy as np

from serve.tools.hub.seeing import find_all
from serve.tools.media import png_file
from serve.tools.models import ModelCache, load_parts, run_model
from serve.tools.spec import ToolOutput

LOAD_POSE = partial(load_parts, ("VitPoseForPoseEstimation", "AutoImageProcessor"))
MIN_SCORE = 0.3  # of a joint
RADIUS_PX = 4  # of a joint, and half the width of a limb, on a picture of 512 pixels
LIMB_SHADE = 0.6  # of a joint's colour

Point = tuple[float, float]

# COCO's joints, as ViTPose numbers them, in OpenPose's order, whose second one, the neck, lies between the shoulders
_NECK = -1
_L_SHOULDER, _R_SHOULDER = 5, 6
_JOINTS = (0, _NECK, _R_SHOULDER, 8, 10, _L_SHOULDER, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
_LIMBS = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10),
    (1, 11), (11, 12), (12, 13), (1, 0), (0, 14), (14, 16), (0, 15), (15, 17),
)  # fmt: skip
_COLOURS = (
    (255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0), (0, 255, 0), (0, 255, 85),
    (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255), (0, 0, 255), (85, 0, 255), (170, 0, 255), (255, 0, 255),
    (255, 0, 170), (255, 0, 85),
)  # fmt: skip


def draw_pose(models: ModelCache, model_id: str, detector_id: str, image: np.ndarray) -> ToolOutput:
    """Joints and limbs, on black, of every person that the second model finds."""
    people = [box for label, _, box in find_all(models, detector_id, image) if label == "person"]
    canvas = np.zeros_like(image)
    if not people:
        return ToolOutput("No person was found, so there is no pose.", png_file(canvas))
    model, processor = models.get(model_id, LOAD_POSE)
    boxes = [[[float(x1), float(y1), float(x2 - x1), float(y2 - y1)] for x1, y1, x2, y2 in people]]
    outputs = run_model(model, processor(image, boxes=boxes, return_tensors="pt"))
    counts = []
    for person in processor.post_process_pose_estimation(outputs, boxes=boxes)[0]:
        found = zip(person["labels"], person["keypoints"], person["scores"], strict=True)
        joints = {int(label): (float(x), float(y)) for label, (x, y), score in found if float(score) > MIN_SCORE}
        counts.append(draw_person(canvas, joints))
    who = "person" if len(counts) == 1 else "people"
    return ToolOutput(f"Found {len(counts)} {who} with {', '.join(map(str, counts))} joints.", png_file(canvas))


def draw_person(canvas: np.ndarray, joints: Mapping[int, Point]) -> int:
    """Draw what is known of a person, into uint8 [H, W, 3].

    Args:
        canvas: to draw on.
        joints: COCO's number -> (x, y) in pixels.

    Returns:
        how many joints were drawn.
    """
    shoulders = [joints[side] for side in (_L_SHOULDER, _R_SHOULDER) if side in joints]
    known = dict(joints)
    if len(shoulders) == 2:
        known[_NECK] = ((shoulders[0][0] + shoulders[1][0]) / 2, (shoulders[0][1] + shoulders[1][1]) / 2)
    points = {place: tuple(map(round, known[joint])) for place, joint in enumerate(_JOINTS) if joint in known}
    radius = max(1, round(RADIUS_PX * max(canvas.shape[:2]) / 512))
    for (start, end), colour in zip(_LIMBS, _COLOURS, strict=False):
        if start in points and end in points:
            shade = [LIMB_SHADE * value for value in colour]
            cv2.line(canvas, points[start], points[end], shade, 2 * radius, cv2.LINE_AA)
    for place, point in points.items():
        cv2.circle(canvas, point, radius, _COLOURS[place], -1, cv2.LINE_AA)
    return len(points)
