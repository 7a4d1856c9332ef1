"""Scenes, key frames and the frame that stands for a clip."""

from __future__ import annotations

import itertools
from dataclasses import replace

import cv2
import numpy as np

from data_pipeline.errors import InputError
from serve.tools.media import mp4_file, png_file
from serve.tools.spec import Argument, Clip, ToolOutput, ToolSpec, clip_argument

MIN_SCENE_S = 0.3
MAX_SHEET_COLUMNS = 4


def _describe_frames(clip: Clip) -> tuple[np.ndarray, np.ndarray]:
    """Colour histograms float32 [T, 512] that sum to 1, and small grey pictures float32 [T, 27, 36]."""
    histograms, thumbs = [], []
    for frame in clip.frames:
        small = cv2.resize(frame, (144, 108), interpolation=cv2.INTER_AREA)
        histogram = cv2.calcHist([small], [0, 1, 2], None, [8, 8, 8], [0, 256] * 3).ravel()
        histograms.append(histogram / histogram.sum())
        thumbs.append(cv2.cvtColor(cv2.resize(small, (36, 27), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY))
    return np.stack(histograms), np.stack(thumbs).astype(np.float32)


def find_cuts(clip: Clip) -> list[int]:
    """Numbers of the frames with which a new scene begins, without 0.

    A hard cut changes the structure of the picture (correlation of small grey pictures, which changes of light leave
    alone) and its colours far more than the frames around it.
    """
    histograms, thumbs = _describe_frames(clip)
    centered = thumbs - thumbs.mean(axis=(1, 2), keepdims=True)
    norms = np.sqrt((centered**2).sum(axis=(1, 2))) + 1e-6
    alike = (centered[1:] * centered[:-1]).sum(axis=(1, 2)) / (norms[1:] * norms[:-1])
    colors = 0.5 * np.abs(np.diff(histograms, axis=0)).sum(axis=1)
    change = (1 - alike) + colors  # [T-1], 0 to 3
    cuts: list[int] = []
    for index in range(len(change)):
        around = np.concatenate([change[max(0, index - 6) : index], change[index + 1 : index + 7]])
        usual = float(np.median(around)) if len(around) else 0.0
        is_cut = 1 - alike[index] > 0.25 and change[index] > 0.5 and change[index] > 3 * usual + 0.1
        if is_cut and (index + 1 - (cuts[-1] if cuts else 0)) / clip.fps >= MIN_SCENE_S:
            cuts.append(index + 1)
    return cuts


def split_scenes(video: Clip, scene: int = 0) -> ToolOutput:
    """The clip with a key frame at each cut, or one of its scenes."""
    cuts = find_cuts(video)
    edges = [0, *cuts, len(video.frames)]
    listed = "; ".join(
        f"scene {number}: {first / video.fps:.2f} to {last / video.fps:.2f} s (frames {first} to {last - 1})"
        for number, (first, last) in enumerate(itertools.pairwise(edges), start=1)
    )
    text = (
        f"Found {len(cuts)} hard cuts. {listed}. By classical change of structure and colour; slow fades are not found."
    )
    if scene == 0:
        return ToolOutput(text, mp4_file(video, key_frames=tuple(cuts)))
    if scene >= len(edges):
        raise InputError(
            f"scene is {scene}, but the clip has {len(edges) - 1}; give a number from 1 to {len(edges) - 1}."
        )
    first, last = edges[scene - 1], edges[scene]
    sound = video.sound and replace(video.sound, start_s=video.sound.start_s + first / video.fps)
    part = replace(video, frames=video.frames[first:last], sound=sound)
    return ToolOutput(f"{text} This is scene {scene}.", mp4_file(part))


def measure_sharpness(frame: np.ndarray) -> float:
    """Variance of the Laplacian."""
    return float(cv2.Laplacian(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), cv2.CV_32F).var())


def find_poster(clip: Clip) -> int:
    """The frame that is most like all others, of those the sharpest: no smear, no flash, no black."""
    _histograms, thumbs = _describe_frames(clip)
    distance = np.abs(thumbs - np.median(thumbs, axis=0)).mean(axis=(1, 2))
    typical = np.flatnonzero(distance <= np.percentile(distance, 50) + 1e-6)
    return int(max(typical, key=lambda index: measure_sharpness(clip.frames[index])))


def extract_poster_frame(video: Clip) -> ToolOutput:
    """One frame."""
    number = find_poster(video)
    text = f"Frame {number} at {number / video.fps:.2f} s: sharp, and like most of the clip."
    return ToolOutput(text, png_file(video.frames[number]))


def find_keyframes(clip: Clip, count: int) -> list[int]:
    """Up to `count` frames that differ most: one per scene first, then those farthest from the chosen ones."""
    histograms, thumbs = _describe_frames(clip)
    features = np.concatenate([histograms * 3, thumbs.reshape(len(thumbs), -1) / 255 / np.sqrt(thumbs[0].size)], axis=1)
    edges = [0, *find_cuts(clip), len(clip.frames)]
    chosen = [(first + last) // 2 for first, last in itertools.pairwise(edges)][:count]
    while len(chosen) < count:
        nearest = np.min([np.linalg.norm(features - features[index], axis=1) for index in chosen], axis=0)
        if nearest.max() < 0.05:
            break  # the rest looks like one of them
        chosen.append(int(nearest.argmax()))
    return sorted(chosen)


def extract_keyframes(video: Clip, count: int = 6) -> ToolOutput:
    """The key frames side by side on one sheet."""
    chosen = find_keyframes(video, count)
    height, width = video.frames.shape[1:3]
    scale = min(1.0, 480 / width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    columns = min(len(chosen), MAX_SHEET_COLUMNS)
    rows = -(-len(chosen) // columns)
    sheet = np.full((rows * (size[1] + 4) - 4, columns * (size[0] + 4) - 4, 3), 255, np.uint8)
    for place, number in enumerate(chosen):
        top, left = place // columns * (size[1] + 4), place % columns * (size[0] + 4)
        sheet[top : top + size[1], left : left + size[0]] = cv2.resize(
            video.frames[number], size, interpolation=cv2.INTER_AREA
        )
    times = ", ".join(f"{number / video.fps:.2f} s (frame {number})" for number in chosen)
    return ToolOutput(
        f"{len(chosen)} key frames on one sheet, row by row: {times}. By classical change of picture.", png_file(sheet)
    )


TOOLS = (
    ToolSpec(
        "local/split-scenes",
        split_scenes,
        "Cuts a clip at its scene changes. Hard cuts only; gives the whole clip with a key frame at each cut, "
        "or one scene.",
        (
            clip_argument(),
            Argument(
                "scene", "integer", "number of the one scene to give back, from 1; 0 = the whole clip", 0, minimum=0
            ),
        ),
        "video",
    ),
    ToolSpec(
        "local/extract-poster-frame",
        extract_poster_frame,
        "Saves one picture of a clip in which nothing moves. The sharpest of its typical frames.",
        (clip_argument(),),
        "image",
    ),
    ToolSpec(
        "local/extract-keyframes",
        extract_keyframes,
        "Saves the most important frames. Those that differ most, side by side on one sheet; a classical "
        "measure of change.",
        (clip_argument(), Argument("count", "integer", "how many at most", 6, minimum=1, maximum=24)),
        "image",
    ),
)
