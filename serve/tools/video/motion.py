"""What moves in a clip: the camera, an object, how much."""

from __future__ import annotations

import itertools

import cv2
import numpy as np

from data_pipeline.errors import MediaError
from serve.tools.media import png_file
from serve.tools.spec import Clip, ToolOutput, ToolSpec, clip_argument

WORKING_SIDE_PX = 480
MAX_PANORAMA_PIXELS = 30_000_000


def to_small_gray(clip: Clip) -> tuple[np.ndarray, float]:
    """uint8 [T, h, w] with a longest side of at most 480, and the factor to the clip's own pixels."""
    height, width = clip.frames.shape[1:3]
    scale = min(1.0, WORKING_SIDE_PX / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    grays = [
        cv2.cvtColor(cv2.resize(frame, size, interpolation=cv2.INTER_AREA) if scale < 1 else frame, cv2.COLOR_RGB2GRAY)
        for frame in clip.frames
    ]
    return np.stack(grays), 1 / scale


def need_frames(clip: Clip, count: int) -> None:
    """Raise MediaError where the clip has fewer than `count` frames or is very small."""
    if len(clip.frames) < count or min(clip.frames.shape[1:3]) < 16:
        raise MediaError(
            f"the clip has {len(clip.frames)} frames of {clip.frames.shape[2]} x {clip.frames.shape[1]} pixels; "
            f"at least "
            f"{count} of 16 x 16 are needed."
        )


def find_camera_motion(previous: np.ndarray, current: np.ndarray) -> np.ndarray | None:
    """Shift, turn and zoom from one grey frame to the next, float [2, 3]; None where too little matches.

    Corners followed by Lucas and Kanade's method both ways, and RANSAC over their motion.
    """
    corners = cv2.goodFeaturesToTrack(previous, 300, 0.01, 5)
    if corners is None or len(corners) < 6:
        return None
    options = {"winSize": (21, 21), "maxLevel": 4}
    moved, found, _ = cv2.calcOpticalFlowPyrLK(previous, current, corners, np.empty(0), **options)
    back, found_back, _ = cv2.calcOpticalFlowPyrLK(current, previous, moved, np.empty(0), **options)
    good = (found.ravel() > 0) & (found_back.ravel() > 0) & (np.abs(back - corners).reshape(-1, 2).max(axis=1) < 1.0)
    if good.sum() < 6:
        return None
    cv2.setRNGSeed(0)
    warp, inliers = cv2.estimateAffinePartial2D(corners[good], moved[good], ransacReprojThreshold=1.5)
    if warp is None or inliers.sum() < 6:
        return None
    return warp


def find_zoom(clip: Clip) -> tuple[float, int]:
    """Overall magnification from first to last frame, and the number of steps that could be measured."""
    grays, _ = to_small_gray(clip)
    total, known = 0.0, 0
    for previous, current in itertools.pairwise(grays):
        warp = find_camera_motion(previous, current)
        if warp is not None:
            total += float(np.log(np.hypot(warp[0, 0], warp[0, 1])))
            known += 1
    return float(np.exp(total * (len(grays) - 1) / known)) if known else 1.0, known


def measure_zoom(video: Clip) -> ToolOutput:
    """Factor and direction."""
    need_frames(video, 2)
    factor, known = find_zoom(video)
    if not known:
        return ToolOutput("The zoom cannot be measured: too few points of the picture can be followed.")
    seconds = (len(video.frames) - 1) / video.fps
    words = "The camera does not zoom" if 0.97 < factor < 1.03 else f"The camera zooms {'in' if factor > 1 else 'out'}"
    return ToolOutput(f"{words}: things become {factor:.2f} times as large in {seconds:.1f} s. By followed corners.")


def find_flow(clip: Clip) -> np.ndarray:
    """Mean speed of each step in pixels of the clip per frame, float [T - 1] (dense inverse search, Kroeger 2016)."""
    grays, factor = to_small_gray(clip)
    flow_of = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    speeds = []
    for previous, current in itertools.pairwise(grays):
        flow = flow_of.calc(previous, current, np.empty(0))
        speeds.append(float(np.hypot(flow[..., 0], flow[..., 1]).mean()) * factor)
    return np.array(speeds)


def measure_motion(video: Clip) -> ToolOutput:
    """Mean and largest speed, and the direction of the camera."""
    need_frames(video, 2)
    speeds = find_flow(video)
    grays, factor = to_small_gray(video)
    warps = [find_camera_motion(a, b) for a, b in itertools.pairwise(grays)]
    middle = np.array([grays.shape[2] / 2, grays.shape[1] / 2, 1])
    shifts = np.array([(warp @ middle - middle[:2]) * factor for warp in warps if warp is not None]).reshape(-1, 2)
    camera = ""
    if len(shifts):
        dx, dy = shifts.sum(axis=0)
        camera = (
            f" The picture as a whole moves {dx:.0f} pixels to the right and {dy:.0f} down from first to last frame."
        )
    peak = int(speeds.argmax())
    return ToolOutput(
        f"Mean motion {speeds.mean():.2f} pixels per frame ({speeds.mean() * video.fps:.1f} per second), the most at "
        f"{peak / video.fps:.2f} s with {speeds[peak]:.2f}.{camera} By classical optical flow (dense inverse search)."
    )


def find_track(clip: Clip) -> list[tuple[int, float, float, float]]:
    """(frame, x, y, width) of the middle of the largest thing that moves before a still background.

    The background is the median of all frames; what differs from it is the object.
    """
    step = max(1, len(clip.frames) // 60)
    background = np.median(clip.frames[::step], axis=0).astype(np.int16)
    track = []
    for number, frame in enumerate(clip.frames):
        difference = np.abs(frame.astype(np.int16) - background).max(axis=2).astype(np.uint8)
        mask = (cv2.GaussianBlur(difference, (0, 0), 1.0) > 25).astype(np.uint8)
        mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (9, 9)))
        count, _, sizes, _centers = cv2.connectedComponentsWithStats(mask)
        if count < 2:
            continue
        largest = 1 + int(sizes[1:, cv2.CC_STAT_AREA].argmax())
        area = sizes[largest, cv2.CC_STAT_AREA]
        width, height = sizes[largest, cv2.CC_STAT_WIDTH], sizes[largest, cv2.CC_STAT_HEIGHT]
        if width > 0.8 * mask.shape[1] or height > 0.8 * mask.shape[0]:
            continue  # the whole picture changes: the camera moves or zooms
        if 0.0005 * mask.size < area < 0.5 * mask.size:
            x, y = sizes[largest, 0] + sizes[largest, 2] / 2, sizes[largest, 1] + sizes[largest, 3] / 2
            track.append((number, float(x), float(y), float(sizes[largest, 2])))
    return track


def track_object(video: Clip) -> ToolOutput:
    """Where the object is over time."""
    need_frames(video, 3)
    track = find_track(video)
    if len(track) < 0.3 * len(video.frames):
        return ToolOutput("No object was found that moves before a still background.")
    chosen = [track[index] for index in np.linspace(0, len(track) - 1, min(20, len(track))).astype(int)]
    listed = "; ".join(f"{number / video.fps:.2f} s ({x:.0f}, {y:.0f})" for number, x, y, _ in chosen)
    points = np.array([(x, y) for _, x, y, _ in track])
    path = float(np.hypot(*np.diff(points, axis=0).T).sum())
    width = float(np.median([width for *_, width in track]))
    return ToolOutput(
        f"Followed an object some {width:.0f} pixels wide over {path:.0f} pixels; its middle (x, y): {listed}. "
        f"By classical "
        "subtraction of the background, so the camera has to stand still."
    )


def find_sweep(clip: Clip) -> list[np.ndarray]:
    """Where each frame lies in the first frame's coordinates, float [3, 3] each; ends where the chain breaks."""
    grays, factor = to_small_gray(clip)
    scale = np.diag([factor, factor, 1.0])
    placed = [np.eye(3)]
    for previous, current in itertools.pairwise(grays):
        warp = find_camera_motion(current, previous)
        if warp is None:
            break
        placed.append(placed[-1] @ (scale @ np.vstack([warp, [0, 0, 1]]) @ np.linalg.inv(scale)))
    return placed


def stitch_panorama(video: Clip) -> ToolOutput:
    """One wide picture."""
    need_frames(video, 2)
    placed = find_sweep(video)
    if len(placed) < 2:
        raise MediaError("the frames of the clip do not overlap enough to be joined; sweep more slowly.")
    height, width = video.frames.shape[1:3]
    corners = np.array([[0, 0, 1], [width, 0, 1], [0, height, 1], [width, height, 1]], float).T
    reach = np.concatenate([(place @ corners)[:2] for place in placed], axis=1)
    low, high = np.floor(reach.min(axis=1)), np.ceil(reach.max(axis=1))
    size = (int(high[0] - low[0]), int(high[1] - low[1]))
    if size[0] * size[1] > MAX_PANORAMA_PIXELS:
        raise MediaError(
            f"the panorama would have {size[0]} x {size[1]} pixels; give a shorter sweep or smaller frames."
        )
    total, weights = np.zeros((size[1], size[0], 3), np.float32), np.zeros((size[1], size[0]), np.float32)
    fade_y, fade_x = (
        np.minimum(np.arange(height) + 1, height - np.arange(height)),
        np.minimum(np.arange(width) + 1, width - np.arange(width)),
    )
    fade = np.minimum(fade_y[:, None], fade_x[None]).astype(np.float32)
    move = np.array([[1, 0, -low[0]], [0, 1, -low[1]], [0, 0, 1]])
    step = max(1, len(placed) // 60)
    for frame, place in list(zip(video.frames, placed, strict=False))[::step]:
        warp = (move @ place)[:2]
        weight = cv2.warpAffine(fade, warp, size)
        total += cv2.warpAffine(frame.astype(np.float32), warp, size) * weight[..., None]
        weights += weight
    picture = (total / np.maximum(weights, 1e-3)[..., None]).clip(0, 255).astype(np.uint8)
    text = f"Joined {len(placed)} frames of {width} x {height} to {size[0]} x {size[1]} pixels by followed corners."
    if len(placed) < len(video.frames):
        text += f" The {len(video.frames) - len(placed)} frames after them could not be placed."
    return ToolOutput(text, png_file(picture))


TOOLS = (
    ToolSpec(
        "local/measure-zoom",
        measure_zoom,
        "Measures how a camera zooms. By corners followed from frame to frame; strong smear of fast zooms hides them.",
        (clip_argument(),),
        "text",
    ),
    ToolSpec(
        "local/track-object",
        track_object,
        "Follows a moving object before a still background. Classical subtraction of the background.",
        (clip_argument(),),
        "text",
    ),
    ToolSpec(
        "local/measure-motion",
        measure_motion,
        "Measures motion by optical flow. Dense inverse search, a classical method.",
        (clip_argument(),),
        "text",
        timeout_s=120,
    ),
    ToolSpec(
        "local/stitch-panorama",
        stitch_panorama,
        "Joins the frames of a camera sweep into a panorama. By followed corners, without strong perspective.",
        (clip_argument(),),
        "image",
    ),
)
