"""Clips repaired: flicker, darkness, grain, haze and coarse blocks."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from data_pipeline.errors import InputError
from serve.tools.images.light import (
    MIN_TRANSMISSION,
    apply_exposure,
    estimate_airlight,
    estimate_transmission,
    find_exposure,
)
from serve.tools.images.noise import estimate_noise
from serve.tools.images.resolution import enlarge, find_blocks, gather_blocks
from serve.tools.media import mp4_file
from serve.tools.spec import Argument, Clip, ToolOutput, ToolSpec, clip_argument
from serve.tools.video.motion import need_frames

MIN_JUMP = 0.02  # of the mean brightness from frame to frame; less is not seen
MAX_UPSCALED_BYTES = 768 * 2**20


def even_brightness(clip: Clip) -> tuple[Clip, float]:
    """Every frame at the mean brightness of the two seconds around it, per colour channel, by gain.

    Returns:
        the clip, and the largest jump of brightness that it had, as a share of the mean.
    """
    levels = np.stack([frame.reshape(-1, 3).mean(axis=0) for frame in clip.frames]) + 1e-3  # [T,3]
    window = min(len(levels), max(3, round(clip.fps * 2)) | 1)
    padded = np.pad(
        levels, ((window // 2, window // 2), (0, 0)), mode="reflect" if len(levels) > window // 2 else "edge"
    )
    smooth = np.stack([np.exp(np.log(padded[index : index + window]).mean(axis=0)) for index in range(len(levels))])
    frames = np.empty_like(clip.frames)
    for index, frame in enumerate(clip.frames):
        frames[index] = np.clip(frame * (smooth[index] / levels[index]).astype(np.float32), 0, 255).round()
    mean = levels.mean(axis=1)
    jump = float(np.abs(np.diff(mean)).max() / mean.mean()) if len(mean) > 1 else 0.0
    return replace(clip, frames=frames), jump


def remove_flicker(video: Clip) -> ToolOutput:
    """The clip with an even brightness."""
    evened, jump = even_brightness(video)
    if jump < MIN_JUMP:
        return ToolOutput("The clip does not flicker; it is given back as it is.", mp4_file(video))
    text = (
        f"Evened out jumps of brightness of up to {100 * jump:.0f} % by a gain per frame; clipped whites stay clipped."
    )
    return ToolOutput(text, mp4_file(evened))


def brighten_video(video: Clip) -> ToolOutput:
    """The clip with more light; one gain for all frames, so that it does not flicker."""
    sample = video.frames[:: max(1, len(video.frames) // 16)]
    gain, gamma = find_exposure(sample)
    if (gain, gamma) == (1.0, 1.0):
        return ToolOutput("The clip is not dark; it is given back as it is.", mp4_file(video))
    text = f"Brightened the clip {gain:.1f} times, with a gamma of {gamma:.2f}; noise in the shadows grows with it."
    return ToolOutput(text, mp4_file(replace(video, frames=apply_exposure(video.frames, gain, gamma))))


def reduce_grain(clip: Clip) -> Clip:
    """Frames averaged over time along the motion, where they agree, then a filter that keeps edges.

    Each neighbour is brought onto the frame by optical flow of smoothed pictures; pixels that still differ by more
    than the noise are left out of the mean.
    """
    frames = clip.frames
    level = max(4.0, float(np.median([estimate_noise(frame) for frame in frames[:: max(1, len(frames) // 8)]])))
    coarse = [
        cv2.resize(frame, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        for frame in frames[:: max(1, len(frames) // 8)]
    ]
    level = max(level, _noise_over_time(frames), float(np.median([estimate_noise(frame) for frame in coarse])))
    grays = [cv2.GaussianBlur(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), (0, 0), 2.0) for frame in frames]
    height, width = grays[0].shape
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    flow_of = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    out = np.empty_like(frames)
    for index, frame in enumerate(frames):
        total, weights = frame.astype(np.float32), np.ones((height, width), np.float32)
        smooth = cv2.GaussianBlur(frame, (0, 0), 2.0).astype(np.float32)
        for other in range(max(0, index - 3), min(len(frames), index + 4)):
            if other == index:
                continue
            flow = flow_of.calc(grays[index], grays[other], np.empty(0))
            moved = cv2.remap(
                frames[other], x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
            )
            gap = np.abs(cv2.GaussianBlur(moved, (0, 0), 2.0) - smooth).max(axis=2)
            weight = np.exp(-((gap / (0.8 * level + 4)) ** 2))
            total += moved * weight[..., None]
            weights += weight
        mean = (total / weights[..., None]).clip(0, 255).astype(np.uint8)
        half = cv2.resize(mean, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        left = max(estimate_noise(mean), estimate_noise(half))  # coarse grain shows at half the size only
        out[index] = cv2.fastNlMeansDenoisingColored(mean, None, 0.9 * left, 1.1 * left, 5, 15)
    return replace(clip, frames=out)


def _noise_over_time(frames: np.ndarray) -> float:
    """Deviation of the noise from what changes between frames; coarse grain hides from a filter within one frame."""
    if len(frames) < 2:
        return 0.0
    change = np.diff(frames[:8].astype(np.float32), axis=0)
    return float(np.median(np.abs(change)) / 0.6745 / np.sqrt(2))


def denoise_video(video: Clip) -> ToolOutput:
    """The clip with less grain."""
    need_frames(video, 1)
    text = "Reduced grain with a classical filter: frames averaged along the motion, then non-local means."
    return ToolOutput(text, mp4_file(reduce_grain(video)))


def clear_haze(clip: Clip) -> Clip:
    """The dark channel prior with one haze colour and one transmission for the whole clip, so that it does not
    flicker."""
    sample = np.median(clip.frames[:: max(1, len(clip.frames) // 16)], axis=0).astype(np.float32) / 255
    side = max(3, min(sample.shape[:2]) // 17)
    dark = cv2.erode(sample.min(axis=2), np.ones((side, side), np.uint8))
    airlight = np.maximum(estimate_airlight(sample, dark), 0.05)
    frames = np.empty_like(clip.frames)
    for index, frame in enumerate(clip.frames):
        picture = frame.astype(np.float32) / 255
        clear = np.maximum(estimate_transmission(picture, airlight), MIN_TRANSMISSION)[..., None]
        frames[index] = 255 * np.clip((picture - airlight) / clear + airlight, 0, 1)
    return replace(clip, frames=frames)


def dehaze_video(video: Clip) -> ToolOutput:
    """The clip without its haze."""
    return ToolOutput("Removed haze with the classical dark channel prior.", mp4_file(clear_haze(video)))


def raise_resolution(clip: Clip, factor: int) -> tuple[Clip, str]:
    """Every frame `factor` times as large, and in words how; blocks are looked for in the mean of the frames."""
    count, height, width = clip.frames.shape[:3]
    if count * height * width * 3 * factor**2 > MAX_UPSCALED_BYTES:
        raise InputError(f"{count} frames of {width} x {height} times {factor} are too much at once; cut the clip.")
    middle = clip.frames[count // 2]
    rows, columns = find_blocks(middle, 0), find_blocks(middle, 1)
    size = (width * factor, height * factor)
    if rows and columns:
        frames = [
            cv2.resize(gather_blocks(frame, rows, columns), size, interpolation=cv2.INTER_CUBIC)
            for frame in clip.frames
        ]
        return replace(clip, frames=np.stack(frames)), f"from the {columns} x {rows} blocks of each frame, "
    return replace(clip, frames=np.stack([enlarge(frame, *size) for frame in clip.frames])), ""


def upscale_video(video: Clip, factor: int = 2) -> ToolOutput:
    """The clip enlarged; one made of blocks is smoothed."""
    large, how = raise_resolution(video, factor)
    height, width = large.frames.shape[1:3]
    text = (
        f"Enlarged the clip to {width} x {height} pixels, {how}by classical cubic interpolation; no detail is invented."
    )
    return ToolOutput(text, mp4_file(large))


TOOLS = (
    ToolSpec(
        "local/remove-flicker",
        remove_flicker,
        "Evens out jumping brightness. A gain per frame towards the median of the frames around it.",
        (clip_argument(),),
        "video",
    ),
    ToolSpec(
        "local/brighten-video",
        brighten_video,
        "Brightens a dark clip. Gain and gamma from the clip's own levels.",
        (clip_argument(),),
        "video",
        method="exact",
    ),
    ToolSpec(
        "local/denoise-video",
        denoise_video,
        "Removes grain from a clip. A classical filter along the motion in place of a network.",
        (clip_argument(),),
        "video",
        timeout_s=120,
    ),
    ToolSpec(
        "local/dehaze-video",
        dehaze_video,
        "Removes haze from a clip. The classical dark channel prior in place of a network.",
        (clip_argument(),),
        "video",
    ),
    ToolSpec(
        "local/upscale-video",
        upscale_video,
        "Enlarges a blocky clip. Classical interpolation in place of a network.",
        (clip_argument(), Argument("factor", "integer", "how many times wider and higher", 2, minimum=1, maximum=4)),
        "video",
    ),
)
