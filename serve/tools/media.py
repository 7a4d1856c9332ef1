"""Media in and out of tools: files to arrays under limits, arrays to PNG, WAV and MP4."""

from __future__ import annotations

import io
import wave
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from av.container import InputContainer, OutputContainer
from av.stream import Disposition
from av.video.frame import PictureType
from PIL import Image

from data_pipeline.errors import MediaError
from data_pipeline.media.image import open_image, to_rgb
from data_pipeline.media.limits import (
    DEFAULT_LIMITS,
    MediaLimits,
    check_codec,
    check_duration,
    check_pixels,
    open_container,
    open_source,
)
from data_pipeline.media.sound import open_sound
from data_pipeline.media.video import to_pixels
from serve.tools.spec import Clip, ClipSound, Sound, ToolFile

AAC_RATES_HZ = (8000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000)
SOUND_BITS_PER_S = 192_000
RATE_TOLERANCE = 0.05  # of frame rates: times in milliseconds are rounded


@dataclass(frozen=True)
class ToolLimits:
    """What one call may use. Time and memory of a tool's own spec hold where they are lower.

    Attributes:
        media: size, pixels and length of each medium.
        max_clip_bytes: all decoded frames of a clip together.
        max_output_bytes: the file that a tool gives back.
        max_output_chars: the text that a tool gives back.
        timeout_s: wall time of decoding and function together, without what the next one bounds.
        load_timeout_s: wall time in which a tool with a model loads weights that are not in memory yet.
        memory_mb: what decoding and function may allocate.
    """

    media: MediaLimits = DEFAULT_LIMITS
    max_clip_bytes: int = 512 * 2**20
    max_output_bytes: int = 64 * 2**20
    max_output_chars: int = 100_000
    timeout_s: float = 120.0
    load_timeout_s: float = 600.0
    memory_mb: int = 4096


def decode_media(kind: str, data: bytes, limits: ToolLimits) -> np.ndarray | Sound | Clip:
    """Decode a file: "image" to uint8 [H, W, 3], "audio" to `Sound`, "video" to `Clip`.

    Raises:
        MediaError: not of that kind, damaged, or over the limits, which are checked before pixels are allocated.
    """
    if kind == "image":
        return _decode_image(data, limits.media)
    if kind == "audio":
        with open_sound(data, limits.media) as track:
            blocks = [np.nan_to_num(block, posinf=1.0, neginf=-1.0) for block in track.blocks]
        channels = np.concatenate(blocks, axis=1)  # [C,T]
        mono = channels.mean(axis=0, dtype=np.float32)
        return Sound(mono, int(track.rate_hz), channels if len(channels) > 1 else None)
    return _decode_video(data, limits)


def _decode_image(data: bytes, limits: MediaLimits) -> np.ndarray:
    with open_image(data, "the picture", limits) as image:
        return np.array(to_rgb(image))


def _decode_video(data: bytes, limits: ToolLimits) -> Clip:
    name = "the clip"
    with open_source(data, limits.media) as file, open_container(file, name, "video") as container:
        streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
        if not streams:
            raise MediaError(f"{name} has no video track; give a video file.")
        stream = streams[0]
        check_codec(stream, name)
        check_pixels(stream.width, stream.height, name, limits.media, "a frame")
        if stream.duration is not None and stream.time_base is not None:
            check_duration(float(stream.duration * stream.time_base), name, limits.media)
        sound_start_s = _start_of_sound(container)
        told_fps = float(stream.average_rate or stream.guessed_rate or 25)
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {"max_pixels": str(limits.media.max_pixels)}
        frames: list[np.ndarray] = []
        times_s: list[float] = []
        size: tuple[int, int] | None = None
        total = 0
        for frame in container.decode(stream):
            size = size or (frame.width, frame.height)
            if (frame.width, frame.height) != size:
                frame = frame.reformat(*size, threads=1)
            frames.append(to_pixels(frame))
            total += frames[-1].nbytes
            times_s += [] if frame.time is None else [frame.time]
            check_duration(max(len(frames) / told_fps, times_s[-1] - times_s[0] if times_s else 0), name, limits.media)
            if total > limits.max_clip_bytes:
                raise MediaError(
                    f"{name} has more than {limits.max_clip_bytes:,} bytes of pixels once decoded; cut it or "
                    f"scale it down."
                )
    sound = None
    if sound_start_s is not None:
        sound = ClipSound(data, limits.media, (times_s[0] if times_s else 0.0) - sound_start_s)
    if not frames:
        raise MediaError(f"{name} contains no video frames; give another file.")
    return Clip(np.stack(frames), _mean_rate(told_fps, times_s, len(frames)), sound)


def _start_of_sound(container: InputContainer) -> float | None:
    """Where the first sound track begins, in seconds; None where there is none that may be decoded."""
    if not container.streams.audio:
        return None
    stream = container.streams.audio[0]
    try:
        check_codec(stream, "the clip")
    except MediaError:
        return None  # the frames can be worked on all the same
    return float((stream.start_time or 0) * (stream.time_base or 0))


def _mean_rate(told_fps: float, times_s: list[float], n_frames: int) -> float:
    """What the file says, unless the times of its frames belie it: for a browser's recording, which says nothing,
    FFmpeg guesses a thousand frames a second from times that are not quite even."""
    span_s = max(times_s) - min(times_s) if times_s else 0.0
    if len(times_s) < n_frames or n_frames < 2 or span_s <= 0:
        return told_fps
    measured_fps = (n_frames - 1) / span_s
    return told_fps if abs(measured_fps / told_fps - 1) < RATE_TOLERANCE else measured_fps


def png_file(rgb: np.ndarray) -> ToolFile:
    """uint8 [H, W, 3] RGB or [H, W] grey to a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(rgb)).save(buffer, "PNG", compress_level=3)
    return ToolFile(buffer.getvalue(), "image/png")


def wav_file(sound: Sound) -> ToolFile:
    """A 16-bit WAV with all channels; samples beyond [-1, 1] are cut."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        samples = sound.samples[None] if sound.channels is None else sound.channels
        file.setnchannels(len(samples))
        file.setsampwidth(2)
        file.setframerate(sound.rate_hz)
        file.writeframes((np.clip(samples.T, -1, 1) * 32767).astype("<i2").tobytes())
    return ToolFile(buffer.getvalue(), "audio/wav")


def mp4_file(clip: Clip, key_frames: tuple[int, ...] = ()) -> ToolFile:
    """H.264 in MP4 with the clip's sound as AAC; an odd last row or column is cut, as 4:2:0 colour asks for even sides.

    Args:
        clip: the frames.
        key_frames: numbers of frames at which a player may cut without decoding what is before them.
    """
    frames = clip.frames[:, : clip.frames.shape[1] // 2 * 2, : clip.frames.shape[2] // 2 * 2]
    if 0 in frames.shape:
        raise MediaError("the clip is one pixel wide or high; give a larger one.")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        rate = Fraction(clip.fps).limit_denominator(1001)
        stream = container.add_stream("libx264", rate=rate)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        stream.options = {"crf": "18", "preset": "veryfast"}
        stream.codec_context.thread_count = 1
        if clip.sound is not None:
            _write_sound(container, clip.sound, len(frames) / clip.fps)
        for number, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            if number in key_frames:
                picture.pict_type = PictureType.I
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return ToolFile(buffer.getvalue(), "video/mp4")


def _write_sound(container: OutputContainer, sound: ClipSound, seconds: float) -> None:
    """As much of the sound as there are frames, as AAC with at most two channels; silence where it begins later."""
    with open_sound(sound.data, sound.limits) as track:
        stream = None
        skip = round(sound.start_s * track.rate_hz)  # samples before the first frame
        left = round(seconds * track.rate_hz)
        for block in track.blocks:
            if skip < 0:
                block, skip = np.pad(block, ((0, 0), (-skip, 0))), 0
            skipped = min(skip, block.shape[1])
            part = block[:2, skipped : skipped + left]
            skip, left = skip - skipped, left - part.shape[1]
            if part.size == 0:
                continue
            if stream is None:
                layout = "stereo" if len(part) == 2 else "mono"
                stream = container.add_stream("aac", rate=_aac_rate(track.rate_hz), layout=layout)
                stream.bit_rate = SOUND_BITS_PER_S
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(part, np.float32), "fltp", layout)
            frame.sample_rate = track.rate_hz
            container.mux(stream.encode(frame))
        if stream is not None:
            container.mux(stream.encode(None))


def _aac_rate(rate_hz: int) -> int:
    return min(AAC_RATES_HZ, key=lambda known: abs(known - rate_hz))
