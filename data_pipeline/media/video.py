"""Video to encoder input: five clips of two frames, three views each.

Source: ImageBind `data.py::load_and_transform_video_data` with pytorchvideo's samplers and crops and decord's decoder.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import av
import av.container
import av.video.stream
import numpy as np
from av.sidedata.sidedata import Type
from av.stream import Disposition

from data_pipeline.errors import MediaError
from data_pipeline.media.image import SIDE_PX, normalise_rgb
from data_pipeline.media.limits import (
    CLIP_DURATION_S,
    DEFAULT_LIMITS,
    MediaLimits,
    MediaSource,
    check_codec,
    check_duration,
    check_pixels,
    clip_starts_s,
    describe_source,
    open_container,
    open_source,
)

CLIPS = 5
VIEWS = 3
FRAMES_PER_CLIP = 2

ABSURD_RATE = 2.0  # times the rate of the time stamps or less than one such part of it: then the header is not believed


def load_video(source: MediaSource, recipe: str = "mllm_tool", *, limits: MediaLimits = DEFAULT_LIMITS) -> np.ndarray:
    """Load five clips of two seconds, first and last frame of each, in three views.

    Frames are turned upright as the file asks, scaled to a short side of 224 with plain bilinear interpolation and cut
    left, centre and right (top, centre and bottom where they are taller than wide). Only the frames that are needed are
    decoded.

    Args:
        source: a path, or the file's bytes; the format is told by the content, never by the name.
        recipe: one of `limits.RECIPES`; "imagebind" places the clips otherwise.
        limits: what the file may measure.

    Returns:
        float32 (15, 3, 2, 224, 224): view (clip-major), channel, time, row, column.

    Raises:
        MediaError: not a video, damaged, without frames, or over the limits.
        InputError: an unknown recipe.
    """
    frames, clips = sample_frames(source, recipe, limits)
    views = {number: _cut_views(frame) for number, frame in frames.items()}  # each [3,224,224,3]
    out = np.empty((CLIPS, VIEWS, 3, FRAMES_PER_CLIP, SIDE_PX, SIDE_PX), np.float32)
    for clip, numbers in enumerate(clips):
        for time, number in enumerate(numbers):
            out[clip, :, :, time] = views[number].transpose(0, 3, 1, 2)
    return out.reshape(CLIPS * VIEWS, 3, FRAMES_PER_CLIP, SIDE_PX, SIDE_PX)


def sample_frames(
    source: MediaSource, recipe: str = "mllm_tool", limits: MediaLimits = DEFAULT_LIMITS
) -> tuple[dict[int, np.ndarray], list[tuple[int, int]]]:
    """Decode the frames that the recipe samples.

    Returns:
        frame number -> uint8 (H, W, 3) RGB, and the two frame numbers of each clip.

    Raises:
        MediaError, InputError: as `load_video`.
    """
    clip_starts_s(0.0, CLIPS, recipe)  # refuse an unknown recipe before decoding
    name = describe_source(source)
    with open_source(source, limits) as file:
        index = _index_frames(file, name, limits)
        if index.pts is not None:
            clips = _clip_frames(len(index.pts), index.rate_fps, recipe)
            frames = _decode_by_time(file, name, limits, index, sorted({number for clip in clips for number in clip}))
            if frames is not None:
                return frames, clips
        # Without a time stamp for every frame they have to be counted, by decoding.
        count = 0
        for _ in _decode_all(file, name, limits):
            count += 1
            check_duration(count / index.rate_fps, name, limits)
        if count == 0:
            raise MediaError(f"{name} contains no video frames; give another file.")
        clips = _clip_frames(count, index.rate_fps, recipe)
        wanted = {number for clip in clips for number in clip}
        decoded = enumerate(_decode_all(file, name, limits))
        return {number: to_pixels(frame) for number, frame in decoded if number in wanted}, clips


def to_pixels(frame: av.VideoFrame) -> np.ndarray:
    """uint8 (H, W, 3) RGB, upright: turned and mirrored as the file's display matrix says, to the nearest quarter."""
    # by default each frame starts a thread for every core, which live as long as it does; the pixels are the same
    pixels = frame.to_ndarray(format="rgb24", threads=1)
    side_data: Any = frame.side_data  # its stub knows of motion vectors alone
    matrix = side_data.get(Type.DISPLAYMATRIX)
    if matrix is None:
        return pixels
    a, b, _, c, d = np.frombuffer(matrix, np.int32).tolist()[:5]  # x' = ax + cy, y' = bx + dy
    if abs(b) > abs(a):
        pixels, a, d = pixels.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def _clip_frames(count: int, rate_fps: float, recipe: str) -> list[tuple[int, int]]:
    """First and last frame of each clip, with the reference's float product of rate and exact time."""
    clips = []
    for start_s in clip_starts_s(count / rate_fps, CLIPS, recipe):
        first = min(math.ceil(rate_fps * float(start_s)), count - 1)
        end = min(math.ceil(rate_fps * float(start_s + CLIP_DURATION_S)), count)
        clips.append((first, max(end - 1, first)))
    return clips


@dataclass(frozen=True)
class _FrameIndex:
    """What the packets tell without decoding.

    Attributes:
        rate_fps: average frame rate as the file tells it, unless its time stamps belie that.
        pts: time stamp of every frame in order of display; None where some are missing or equal.
        key_pts: those of key frames, sorted.
    """

    rate_fps: float
    pts: list[int] | None
    key_pts: list[int]


def _index_frames(file: IO[bytes], name: str, limits: MediaLimits) -> _FrameIndex:
    with open_container(file, name, "video") as container:
        stream = _open_stream(container, name, limits)
        told = stream.average_rate or stream.guessed_rate
        second = 1 / stream.time_base if stream.time_base else None  # in units of the time stamps
        pts: list[int | None] = []
        key_pts: list[int] = []
        end = 0
        for packet in container.demux(stream):
            if packet.size == 0 or packet.is_discard:
                continue
            pts.append(packet.pts)
            if packet.pts is not None:
                end = max(end, packet.pts + (packet.duration or 0))
                if packet.is_keyframe:
                    key_pts.append(packet.pts)
    if not pts:
        raise MediaError(f"{name} contains no video frames; give another file.")
    known = sorted(stamp for stamp in pts if stamp is not None)
    is_complete = len(set(known)) == len(pts)
    rate_fps = float(told or 0)
    if is_complete and second and len(known) > 1:
        # the last frame lasts as long as its packet says, or as the others do
        length = max(end - known[0], (known[-1] - known[0]) * len(known) / (len(known) - 1))
        measured_fps = len(known) * float(second) / length
        if not measured_fps / ABSURD_RATE <= rate_fps <= measured_fps * ABSURD_RATE:
            rate_fps = measured_fps
    if not rate_fps:
        raise MediaError(f"{name} gives no frame rate; re-encode it with a constant one.")
    check_duration(len(pts) / rate_fps, name, limits)
    return _FrameIndex(rate_fps, known if is_complete else None, sorted(key_pts))


def _open_stream(container: av.container.InputContainer, name: str, limits: MediaLimits) -> av.video.stream.VideoStream:
    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not streams:
        raise MediaError(f"{name} has no video track; give a video file.")
    stream = streams[0]
    check_codec(stream, name)
    check_pixels(stream.width, stream.height, name, limits, "a frame")
    if stream.duration is not None and stream.time_base is not None:
        check_duration(float(stream.duration * stream.time_base), name, limits)
    stream.codec_context.thread_count = 1  # the caller runs several loaders side by side
    stream.codec_context.options = {"max_pixels": str(limits.max_pixels)}  # for frames larger than the header says
    return stream


def _decode_by_time(
    file: IO[bytes], name: str, limits: MediaLimits, index: _FrameIndex, wanted: list[int]
) -> dict[int, np.ndarray] | None:
    """Decode the frames numbered `wanted` (sorted), seeking over groups of pictures in which none is.

    None where the decoder's time stamps are not those of the packets.
    """
    assert index.pts is not None
    found: dict[int, np.ndarray] = {}
    with open_container(file, name, "video") as container:
        stream = _open_stream(container, name, limits)
        decoded = container.decode(stream)
        position: int | None = None  # time stamp of the last frame that came out
        for number in wanted:
            target = index.pts[number]
            key = bisect.bisect_right(index.key_pts, target) - 1
            if key > 0 and (position is None or index.key_pts[key] > position):
                container.seek(index.key_pts[key], stream=stream, backward=True)
                decoded = container.decode(stream)
            for frame in decoded:
                position = frame.pts
                if position is None or position > target:
                    return None
                if position == target:
                    found[number] = to_pixels(frame)
                    break
            else:
                return None
    return found


def _decode_all(file: IO[bytes], name: str, limits: MediaLimits) -> Iterator[av.VideoFrame]:
    with open_container(file, name, "video") as container:
        yield from container.decode(_open_stream(container, name, limits))


def _cut_views(frame: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) -> float32 (3, 224, 224, 3): three views of the scaled and normalised frame.

    Bilinear interpolation acts on each output pixel alone, so only the pixels of the views are computed.
    """
    is_wide = frame.shape[1] >= frame.shape[0]
    if not is_wide:
        frame = frame.transpose(1, 0, 2)  # the long side across
    short, long = frame.shape[:2]
    scaled = math.floor(long / short * SIDE_PX)
    offsets = (0, math.ceil((scaled - SIDE_PX) / 2), scaled - SIDE_PX)
    columns = np.unique(np.add.outer(offsets, np.arange(SIDE_PX)))  # [C], at most 3 * 224
    upper, lower, down = _neighbours(np.arange(SIDE_PX), short, SIDE_PX)
    before, after, right = _neighbours(columns, long, scaled)
    right = right[:, None]
    lines = []  # each [224,C,3]
    for rows in (upper, lower):
        line = frame[rows]  # [224,long,3] uint8
        left_px = line.take(before, axis=1).astype(np.float32)
        lines.append(left_px + (line.take(after, axis=1) - left_px) * right)
    pixels = normalise_rgb((lines[0] + (lines[1] - lines[0]) * down[:, None, None]) / np.float32(255.0))
    starts = np.searchsorted(columns, offsets)
    views = np.stack([pixels[:, start : start + SIDE_PX] for start in starts])  # [3,224,224,3]
    return views if is_wide else views.transpose(0, 2, 1, 3)


def _neighbours(positions: np.ndarray, size: int, scaled: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Source pixels on both sides of each scaled pixel and the weight of the second (torch, align_corners=False).

    float32 throughout, as there: at some hundred pixels the rounding of the position shows in the result.
    """
    ratio = np.float32(size) / np.float32(scaled)
    source = np.maximum(ratio * (positions.astype(np.float32) + np.float32(0.5)) - np.float32(0.5), np.float32(0.0))
    first = np.minimum(source.astype(np.int64), size - 1)
    second = np.minimum(first + 1, size - 1)
    return first, second, np.clip(source - first.astype(np.float32), np.float32(0.0), np.float32(1.0))
