"""Films that are stored on their side, that lie about their frame rate, or that are no films."""

from __future__ import annotations

import io
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from data_pipeline.errors import MediaError
from data_pipeline.media.limits import RECIPES, picture_container
from data_pipeline.media.load import MediaLimits, load_audio, load_video
from data_pipeline.media.video import sample_frames

WIDTH, HEIGHT = 64, 48


def quadrants() -> np.ndarray:
    """uint8 [48, 64, 3], no two corners alike."""
    frame = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    frame[:24, :32], frame[:24, 32:], frame[24:, :32] = 255, (255, 0, 0), (0, 255, 0)
    return frame


def render(
    frames: list[np.ndarray],
    container: str = "mp4",
    codec: str = "libx264",
    times_ms: np.ndarray | None = None,
    **display: Any,
) -> bytes:
    """A film of 25 frames a second, or of frames at `times_ms`; `display` is for `set_display_rotation`."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as writer:
        stream: Any = writer.add_stream(codec, rate=25, width=WIDTH, height=HEIGHT, pix_fmt="yuv420p")
        if display:
            stream.set_display_rotation(**display)
        if times_ms is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if times_ms is not None:
                frame.pts, frame.time_base = int(times_ms[number]), Fraction(1, 1000)
            writer.mux(stream.encode(frame))
        writer.mux(stream.encode(None))
    return buffer.getvalue()


def greys(count: int) -> list[np.ndarray]:
    return [np.full((HEIGHT, WIDTH, 3), 20 + 2 * number, np.uint8) for number in range(count)]


@pytest.mark.parametrize("container", ["mp4", "mov", "matroska"])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_a_film_on_its_side_is_turned(degrees: int, container: str) -> None:
    frames = [quadrants()] * 60
    stored = sample_frames(render(frames, container))[0]
    for recipe in RECIPES:
        turned, _ = sample_frames(render(frames, container, degrees=degrees), recipe)
        for number in stored.keys() & turned.keys():
            difference = turned[number].astype(int) - np.rot90(stored[number], degrees // 90)
            assert np.abs(difference).max() <= 12, number  # encoded anew


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_a_mirrored_film_is_mirrored_back(degrees: int) -> None:
    stored = sample_frames(render([quadrants()] * 3))[0][0]
    turned = np.rot90(stored, degrees // 90)
    (across,) = {sample_frames(render([quadrants()] * 3, degrees=degrees, hflip=True))[0][0].tobytes()}
    (upside_down,) = {sample_frames(render([quadrants()] * 3, degrees=degrees, vflip=True))[0][0].tobytes()}
    assert across == turned[:, ::-1].tobytes()
    assert upside_down == turned[::-1].tobytes()


def test_a_skewed_film_is_left_to_the_nearest_quarter() -> None:
    stored = sample_frames(render([quadrants()]))[0][0]
    assert np.array_equal(sample_frames(render([quadrants()], degrees=20))[0][0], stored)
    assert np.array_equal(sample_frames(render([quadrants()], degrees=80))[0][0], np.rot90(stored))


@pytest.mark.parametrize("degrees", [90, 180, 270])
@pytest.mark.parametrize("name", ["dog_pan.mp4", "example1_portrait_ntsc.mp4"])
def test_a_real_film_is_turned(name: str, degrees: int, shared_dir: Path) -> None:
    path = shared_dir / "media" / name
    buffer = io.BytesIO()
    with av.open(str(path)) as reader, av.open(buffer, "w", format="mp4") as writer:
        source = reader.streams.video[0]
        stream = writer.add_stream_from_template(source)
        stream.set_display_rotation(degrees)
        for packet in reader.demux(source):
            if packet.dts is not None:
                packet.stream = stream
                writer.mux(packet)
    upright, clips = sample_frames(path)
    turned, turned_clips = sample_frames(buffer.getvalue())
    assert turned_clips == clips
    for number, frame in upright.items():
        assert np.array_equal(turned[number], np.rot90(frame, degrees // 90))
    # the three views lie along the long side, which stands now: the view on the left is the one at the bottom
    views, turned_views = (load_video(source).reshape(5, 3, 3, 2, 224, 224) for source in (path, buffer.getvalue()))
    order = slice(None, None, -1 if degrees == 180 or (degrees == 90) == (frame.shape[1] > frame.shape[0]) else 1)
    assert np.abs(np.rot90(views, degrees // 90, (4, 5))[:, order] - turned_views).mean() < 0.02


def declared(data: bytes, frame_ns: int | None) -> bytes:
    """A WebM that declares frames of so many nanoseconds, or, as browsers write it, tells nothing of them."""
    start = data.index(b"\x23\xe3\x83")  # the element DefaultDuration
    size = 4 + (data[start + 3] & 0x7F)
    told = bytes([0xEC, 0x80 | (size - 2)]) + bytes(size - 2)  # an element of nothing
    if frame_ns is not None:
        told = data[start : start + 4] + frame_ns.to_bytes(size - 4, "big")
    return data[:start] + told + data[start + size :]


@pytest.mark.parametrize("frame_ns", [1_000_000, None, 2_000_000_000])
@pytest.mark.parametrize("recipe", RECIPES)
def test_an_absurd_frame_rate_is_not_believed(recipe: str, frame_ns: int | None) -> None:
    frames = [*greys(100)]
    even = render(frames, "webm", "libvpx")
    wanted = sample_frames(even, recipe)[1]
    assert len(set(wanted)) == 5
    assert sample_frames(declared(even, frame_ns), recipe)[1] == wanted
    uneven_ms = np.cumsum(np.random.default_rng(0).integers(25, 56, 100))  # as a browser records
    found = sample_frames(declared(render(frames, "webm", "libvpx", uneven_ms), frame_ns), recipe)[1]
    assert np.abs(np.array(found) - wanted).max() <= 2


def test_the_time_stamps_bound_the_length_too() -> None:
    slow = declared(render(greys(40), "webm", "libvpx", 100 * np.arange(40)), 1_000_000)
    assert load_video(slow).shape == (15, 3, 2, 224, 224)
    with pytest.raises(MediaError, match=r"lasts 4\.0 s; at most 3\.0 s"):
        load_video(slow, limits=MediaLimits(max_duration_s=3.0))
    many = declared(render(greys(40), "webm", "libvpx"), 4_000_000_000)  # 160 s by its header
    assert load_video(many, limits=MediaLimits(max_duration_s=3.0)).shape == (15, 3, 2, 224, 224)


def test_a_last_frame_that_is_held_counts() -> None:
    held = render_gif(greys(20), [100] * 19 + [6000])
    assert sample_frames(held)[1] == [(0, 5), (3, 8), (6, 11), (9, 14), (12, 17)], "20 frames in 7.9 s, as it tells"


def render_gif(frames: list[np.ndarray], durations_ms: list[int]) -> bytes:
    buffer = io.BytesIO()
    pictures = [Image.fromarray(pixels) for pixels in frames]
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], duration=durations_ms)
    return buffer.getvalue()


def test_a_picture_is_no_film() -> None:
    buffer = io.BytesIO()
    Image.fromarray(quadrants()).save(buffer, "AVIF")
    for load, kind in ((load_video, "video"), (load_audio, "audio")):
        with pytest.raises(MediaError, match=rf"cannot be read as {kind}: it is a picture \(AVIF\); use it as one\."):
            load(buffer.getvalue())


@pytest.mark.parametrize(
    ("brands", "kind"),
    [
        (b"avif\0\0\0\0avifmif1miaf", "AVIF"),
        (b"avis\0\0\0\0avisavifmsf1iso8", "AVIF"),
        (b"mif1\0\0\0\0mif1avif", "AVIF"),
        (b"heic\0\0\0\0mif1heic", "HEIC"),
        (b"mif1\0\0\0\0mif1heic", "HEIC"),
        (b"mif1\0\0\0\0miaf", "HEIF"),
        (b"crx \0\0\0\x01crx isom", "CR3"),
        (b"isom\0\0\2\0isomiso2avc1mp41", None),
        (b"mp42\0\0\0\0isommp42mif1", None),
        (b"qt  \0\0\2\0qt  ", None),
        (b"M4A \0\0\0\0M4A mp42isom", None),
    ],
)
def test_brands_tell_stills_from_films(brands: bytes, kind: str | None) -> None:
    box = (8 + len(brands)).to_bytes(4, "big") + b"ftyp" + brands
    assert picture_container(box + b"\0\0\0\x08avif") == kind
    assert picture_container(b"RIFF" + box) is None
    assert picture_container(box[:11]) is None


@pytest.mark.parametrize("container", ["mp4", "webm", "avi", "mpegts", "gif"])
def test_truncated_films_are_loaded_as_far_as_they_go_or_refused(container: str) -> None:
    codec = {"webm": "libvpx", "avi": "mpeg4"}.get(container, "libx264")
    data = render_gif(greys(20), [100] * 20) if container == "gif" else render(greys(60), container, codec)
    outcomes = []
    for end in [0, 1, 8, 30, *(int(len(data) * share) for share in (0.05, 0.3, 0.6, 0.9))]:
        try:
            outcomes.append(str(load_video(data[:end]).shape))
        except MediaError as error:
            outcomes.append(str(error))
    assert all(re.fullmatch(r"the given data [^\n]+\.", outcome) for outcome in outcomes[:4]), outcomes
    assert all(re.fullmatch(r"the given data [^\n]+\.|\(15, .*", outcome) for outcome in outcomes), outcomes
