"""Sound tracks: opened, decoded whole, or of long ones only some parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from av import FFmpegError
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import InputContainer

from data_pipeline.errors import MediaError
from data_pipeline.media.limits import (
    DEFAULT_LIMITS,
    MediaLimits,
    MediaSource,
    check_codec,
    check_duration,
    describe_source,
    open_container,
    open_source,
)

MIN_RATE_HZ, MAX_RATE_HZ = 1_000, 768_000

PASSED_OVER_FROM_S = 60.0  # shorter tracks are decoded whole, which finds out every damage
# Formats in which a place is found to the sample without reading what comes before it; in MP3 it is guessed.
EXACT_FORMATS = frozenset({"mov,mp4,m4a,3gp,3g2,mj2", "wav", "flac"})
# Decoders whose samples are those of the whole track some packets after they have begun in its middle, bit for bit. Not
# AAC's, which draws the noise that it puts in at random, from its first packet on.
FORGETFUL_CODECS = frozenset({"alac", "flac", "pcm_s16le", "pcm_s24le", "pcm_f32le"})
LEAD_S = 1.0  # which they are given for that
LENGTH_TOLERANCE_S = 0.5  # by which a length may be wrong for which parts were chosen

Spans = Sequence[tuple[float, float]]  # begin and end in seconds


@dataclass(frozen=True)
class SoundTrack:
    """An open sound track.

    Attributes:
        rate_hz: its sampling rate.
        told_s: its length as the file tells it, in seconds; 0 where it does not.
        blocks: float32 (channels, samples) in [-1, 1], in order; decoded as they are asked for.
    """

    rate_hz: int
    told_s: float
    blocks: Iterator[np.ndarray]


@dataclass(frozen=True)
class SoundParts:
    """What was wanted of a track.

    Attributes:
        rate_hz: its sampling rate.
        count: its length in samples.
        blocks: (position of its first sample, float32 (channels, samples) in [-1, 1]), in order.
    """

    rate_hz: int
    count: int
    blocks: list[tuple[int, np.ndarray]]

    def cut(self, first: int, last: int) -> np.ndarray:
        """float32 (channels, last - first); zero beyond the ends of the track."""
        part = np.zeros((len(self.blocks[0][1]), last - first), np.float32)
        for position, block in self.blocks:
            start, stop = max(position, first), min(position + block.shape[1], last)
            if start < stop:
                part[:, start - first : stop - first] = block[:, start - position : stop - position]
        return part


@contextmanager
def open_sound(source: MediaSource, limits: MediaLimits = DEFAULT_LIMITS) -> Iterator[SoundTrack]:
    """Open the first sound track; what goes wrong while its blocks are decoded is a MediaError too.

    Raises:
        MediaError: as `load_audio`.
    """
    name = describe_source(source)
    with open_source(source, limits) as file, open_container(file, name, "audio") as container:
        stream = _open_stream(container, name, limits)
        blocks = _decode_blocks(container.decode(stream), stream.rate, name, limits)
        yield SoundTrack(stream.rate, _told_s(stream), blocks)


def decode_audio(source: MediaSource, limits: MediaLimits = DEFAULT_LIMITS) -> tuple[np.ndarray, int]:
    """Decode the whole of the first sound track.

    Returns:
        float32 (channels, samples) in [-1, 1] and the sampling rate in Hz.

    Raises:
        MediaError: as `load_audio`.
    """
    with open_sound(source, limits) as track:
        return np.concatenate(list(track.blocks), axis=1), track.rate_hz


def decode_parts(
    source: MediaSource, limits: MediaLimits, choose: Callable[[float], Spans], length_s: float | None = None
) -> SoundParts:
    """Decode and keep some parts of the first sound track.

    Args:
        source: as of `load_audio`.
        limits: what the file may measure.
        choose: the parts, by the track's length in seconds, which is known to `LENGTH_TOLERANCE_S`.
        length_s: of the track, which is decoded whole then; None = as the file tells it, which may be wrong.

    Raises:
        MediaError: as `load_audio`.
    """
    name = describe_source(source)
    with open_source(source, limits) as file, open_container(file, name, "audio") as container:
        stream = _open_stream(container, name, limits)
        placed_s = _told_s(stream) if length_s is None else length_s
        spans = choose(placed_s)
        is_sought = length_s is None and placed_s >= PASSED_OVER_FROM_S and _is_exact(container, stream)
        decode = _decode_seeking if is_sought else _decode_whole
        try:
            found = _keep(decode(container, stream, name, limits, spans), stream.rate, spans)
            found_s = found.count / found.rate_hz
        except _NotAsToldError:
            found, found_s = None, placed_s
    if found is None or abs(found_s - placed_s) > LENGTH_TOLERANCE_S:
        return decode_parts(source, limits, choose, found_s)
    return found


class _NotAsToldError(Exception):
    """The track cannot be sought as its header says; whoever decodes all of it may get further."""


def _open_stream(container: InputContainer, name: str, limits: MediaLimits) -> AudioStream:
    if not container.streams.audio:
        raise MediaError(f"{name} has no sound track; give an audio file or a video with sound.")
    stream = container.streams.audio[0]
    check_codec(stream, name)
    if not stream.rate or not MIN_RATE_HZ <= stream.rate <= MAX_RATE_HZ:
        raise MediaError(
            f"{name} has a sampling rate of {stream.rate} Hz; {MIN_RATE_HZ:,} to {MAX_RATE_HZ:,} Hz are allowed."
        )
    check_duration(_told_s(stream), name, limits)
    stream.codec_context.thread_count = 1  # the caller runs several loaders side by side
    return stream


def _told_s(stream: AudioStream) -> float:
    if stream.duration is None or stream.time_base is None:
        return 0.0
    return float(stream.duration * stream.time_base)


def _decode_blocks(frames: Iterator[AudioFrame], rate_hz: int, name: str, limits: MediaLimits) -> Iterator[np.ndarray]:
    converter = AudioResampler(format="fltp")  # planar float32; rate and channels stay
    count = 0
    for frame in frames:
        for block in converter.resample(frame):
            count += block.samples
            yield block.to_ndarray()  # [channels,samples]
        check_duration(count / rate_hz, name, limits)
        _check_samples(count, frame.layout.nb_channels, name, limits)
    if count:
        for block in converter.resample(None):
            if block is not None and block.samples:
                count += block.samples
                yield block.to_ndarray()
    if count == 0:
        raise MediaError(f"{name} contains no sound: its track has zero samples.")


def _check_samples(count: int, channels: int, name: str, limits: MediaLimits) -> None:
    if count * channels > limits.max_samples:
        raise MediaError(
            f"{name} has more than {limits.max_samples:,} samples over its {channels} channels, the most that is "
            "allowed; cut it or mix it down first."
        )


def _decode_whole(
    container: InputContainer, stream: AudioStream, name: str, limits: MediaLimits, _spans: Spans
) -> Iterator[tuple[int, np.ndarray]]:
    """(position, block) of all of it."""
    position = 0
    for block in _decode_blocks(container.decode(stream), stream.rate, name, limits):
        yield position, block
        position += block.shape[1]


def _keep(placed: Iterator[tuple[int, np.ndarray]], rate_hz: int, spans: Spans) -> SoundParts:
    """The blocks that touch the spans; the last one tells how long the track is."""
    blocks: list[tuple[int, np.ndarray]] = []
    count = 0
    for position, block in placed:
        begin_s, count = position / rate_hz, position + block.shape[1]
        if any(begin_s < last_s and count / rate_hz > first_s for first_s, last_s in spans):
            blocks.append((position, block))
    return SoundParts(rate_hz, count, blocks)


def _is_exact(container: InputContainer, stream: AudioStream) -> bool:
    """Whether a place is found to the sample, and what is decoded there is what a decoder of the whole gives."""
    is_known = container.format.name in EXACT_FORMATS and stream.codec_context.name in FORGETFUL_CODECS
    return is_known and stream.time_base is not None and stream.time_base * stream.rate <= 1


def _decode_seeking(
    container: InputContainer, stream: AudioStream, name: str, limits: MediaLimits, spans: Spans
) -> Iterator[tuple[int, np.ndarray]]:
    """(position, block) of the beginning, of the spans with what leads to them, and of the end.

    Raises:
        _NotAsToldError: a time stamp is not as those before say, or a place cannot be read.
    """
    told_s, rate_hz = _told_s(stream), stream.rate
    assert stream.time_base is not None
    _check_samples(int(told_s * rate_hz), stream.codec_context.channels, name, limits)
    converter = AudioResampler(format="fltp")
    first_pts: int | None = None
    count = 0  # samples up to where we are
    try:
        frames = container.decode(stream)
        for begin_s, end_s in [(0.0, LEAD_S), *sorted(spans), (told_s - LEAD_S, limits.max_duration_s + LEAD_S)]:
            wanted_from: int | None = None
            if first_pts is not None and begin_s - 2 * LEAD_S > count / rate_hz:
                wanted_from = int(begin_s * rate_hz)
                container.seek(first_pts + int((begin_s - LEAD_S) / stream.time_base), stream=stream)
                frames = container.decode(stream)
            while count < end_s * rate_hz and (frame := next(frames, None)) is not None:
                if frame.pts is None or frame.time_base is None:
                    raise _NotAsToldError
                first_pts = frame.pts if first_pts is None else first_pts
                position = round((frame.pts - first_pts) * frame.time_base * rate_hz)
                if position != count if wanted_from is None else position > wanted_from:
                    raise _NotAsToldError
                wanted_from, count = None, position
                for block in converter.resample(frame):
                    yield count, block.to_ndarray()  # [channels,samples]
                    count += block.samples
                check_duration(count / rate_hz, name, limits)
    except FFmpegError as error:
        raise _NotAsToldError from error
