"""Media in and out of tools: what is decoded, what is refused, what comes back."""

from __future__ import annotations

import io
import re
import wave
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from rotated_film import render_rotated_film

from data_pipeline.errors import MediaError
from data_pipeline.media.limits import MediaLimits
from serve.tools.media import ToolLimits, decode_media, mp4_file, png_file, wav_file
from serve.tools.spec import Clip, Sound

SHORT = ToolLimits(media=MediaLimits(max_duration_s=2.0))


def tone(seconds: float) -> Sound:
    return Sound(np.sin(np.arange(int(8000 * seconds)) / 5).astype(np.float32) / 2, 8000)


def grey_clip(seconds: float, side: int = 16) -> Clip:
    frames = np.arange(int(10 * seconds), dtype=np.uint8)[:, None, None, None]
    return Clip(np.broadcast_to(frames * 8, (len(frames), side, side, 3)).copy(), 10.0)


def live_recording(times_ms: np.ndarray) -> bytes:
    """A WebM as browsers record it: times in milliseconds, and no frame rate in the header."""
    file = io.BytesIO()
    with av.open(file, "w", format="webm") as container:
        stream = container.add_stream("libvpx", rate=30, width=32, height=32, pix_fmt="yuv420p")
        stream.codec_context.time_base = Fraction(1, 1000)
        for number, time_ms in enumerate(times_ms):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = int(time_ms), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    data = file.getvalue()
    start = data.index(b"\x23\xe3\x83")  # the element DefaultDuration, which becomes one of zeros (Void)
    size = 4 + (data[start + 3] & 0x7F)
    return data[:start] + bytes([0xEC, 0x80 | (size - 2)]) + bytes(size - 2) + data[start + size :]


def test_sounds_are_taken_up_to_the_limit_and_refused_beyond() -> None:
    decoded = decode_media("audio", wav_file(tone(1.9)).data, SHORT)
    assert isinstance(decoded, Sound)
    assert decoded.duration_s == pytest.approx(1.9)
    assert decoded.samples == pytest.approx(tone(1.9).samples, abs=1e-4)
    with pytest.raises(MediaError, match=r"lasts 2\.1 s; at most 2\.0 s are allowed, so cut it first"):
        decode_media("audio", wav_file(tone(2.1)).data, SHORT)


def test_a_sound_that_hides_its_length_is_refused_while_it_is_decoded() -> None:
    data = bytearray(wav_file(tone(5)).data)
    data[40:44] = b"\xff\xff\xff\xff"  # as in a stream: the header does not know
    with pytest.raises(MediaError, match=r"at most 2\.0 s are allowed"):
        decode_media("audio", bytes(data), SHORT)


def test_clips_are_taken_up_to_the_limit_and_refused_beyond() -> None:
    decoded = decode_media("video", mp4_file(grey_clip(1.9)).data, SHORT)
    assert isinstance(decoded, Clip)
    assert (decoded.frames.shape, decoded.fps) == ((19, 16, 16, 3), 10.0)
    with pytest.raises(MediaError, match=r"at most 2\.0 s are allowed"):
        decode_media("video", mp4_file(grey_clip(2.5)).data, SHORT)
    with pytest.raises(MediaError, match="more than 5,000 bytes of pixels"):
        decode_media("video", mp4_file(grey_clip(1.9)).data, ToolLimits(max_clip_bytes=5000))


def test_a_recording_that_tells_no_rate_has_that_of_its_frames() -> None:
    times_ms = np.cumsum(np.random.default_rng(0).integers(20, 60, 40))
    decoded = decode_media("video", live_recording(times_ms), SHORT)
    assert isinstance(decoded, Clip)
    assert decoded.fps == pytest.approx(39_000 / (times_ms[-1] - times_ms[0]))  # FFmpeg guesses 1000
    with pytest.raises(MediaError, match=r"at most 2\.0 s are allowed"):
        decode_media("video", live_recording(2 * times_ms), SHORT)


def test_files_hold_what_was_put_in() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    assert (decode_media("image", png_file(pixels).data, SHORT) == pixels).all()
    with pytest.raises(MediaError, match="one pixel wide"):
        mp4_file(grey_clip(1, side=1))


def encode_image(picture: Image.Image, image_format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, image_format, **options)
    return buffer.getvalue()


def test_tools_see_pictures_as_people_do() -> None:
    ramp = np.linspace(0, 65_535, 20 * 30).astype(np.uint16).reshape(20, 30)
    for data in (
        encode_image(Image.fromarray(ramp)),
        encode_image(Image.fromarray((ramp / 65_535).astype(np.float32)), "TIFF"),
    ):
        assert np.abs(decode_media("image", data, SHORT) - (ramp / 257)[..., None]).max() <= 0.6
    logo = Image.new("RGBA", (30, 20), (0, 255, 0, 0))  # green, but nobody sees it
    logo.paste((0, 0, 0, 255), (10, 5, 20, 15))
    pixels = decode_media("image", encode_image(logo), SHORT)
    assert isinstance(pixels, np.ndarray)
    assert (pixels[0, 0].tolist(), pixels[10, 15].tolist()) == ([255] * 3, [0] * 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = decode_media("image", encode_image(logo.convert("RGB"), exif=exif), SHORT)
    assert isinstance(turned, np.ndarray)
    assert turned.shape == (30, 20, 3)
    avif = decode_media("image", encode_image(logo, "AVIF"), SHORT)
    assert np.abs(avif.astype(int) - pixels).mean() < 8


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_tools_see_clips_upright(degrees: int) -> None:
    film, wanted = render_rotated_film(degrees)
    decoded = decode_media("video", film, SHORT)
    assert isinstance(decoded, Clip)
    assert decoded.frames.flags.c_contiguous, "OpenCV takes no other"
    assert decoded.frames.shape[1:] == wanted.shape
    assert np.abs(decoded.frames.astype(int) - wanted).mean() < 12


@pytest.mark.parametrize("kind", ["image", "audio", "video"])
@pytest.mark.parametrize(
    "data", [b"", b"\0" * 50, b"RIFF\x24\0\0\0WAVEfmt ", png_file(np.zeros((9, 9, 3), np.uint8)).data[:45]]
)
def test_media_that_are_empty_or_truncated_are_refused_in_one_sentence(kind: str, data: bytes) -> None:
    with pytest.raises(MediaError) as caught:
        decode_media(kind, data, SHORT)
    assert re.fullmatch(r"[^\n]+\.", str(caught.value))


def test_tools_hear_all_channels() -> None:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((2, 2, 8000, 0, "NONE", ""))
        writer.writeframes((np.stack([np.zeros(8000), tone(1).samples], 1) * 32_767).astype("<i2").tobytes())
    decoded = decode_media("audio", file.getvalue(), SHORT)
    assert isinstance(decoded, Sound)
    assert decoded.samples == pytest.approx(tone(1).samples / 2, abs=1e-4)
