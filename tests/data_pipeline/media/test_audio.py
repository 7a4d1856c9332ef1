"""Which channels are heard, and that a long sound costs no more memory than its clips."""

from __future__ import annotations

import io
import subprocess
import sys
import wave
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from data_pipeline.errors import MediaError
from data_pipeline.media import audio, sound
from data_pipeline.media.audio import load_audio
from data_pipeline.media.limits import DEFAULT_LIMITS, RECIPES
from data_pipeline.media.sound import decode_audio, open_sound


def render_wav(samples: np.ndarray, rate_hz: int = 16_000) -> bytes:
    """16-bit WAV of float [T] or [T, channels] in [-1, 1]."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as writer:
        writer.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        writer.setsampwidth(2)
        writer.setframerate(rate_hz)
        writer.writeframes((samples * 32_000).round().astype("<i2").tobytes())
    return buffer.getvalue()


def melody(seconds: float, rate_hz: int = 16_000) -> np.ndarray:
    """A tone whose pitch tells the time, float [T]."""
    time = np.arange(int(seconds * rate_hz)) / rate_hz
    return 0.5 * np.sin(2 * np.pi * (200 * time + 10 * time**2))


def encode(samples: np.ndarray, container: str, codec: str, rate_hz: int = 48_000) -> bytes:
    """float [T] as mono."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as writer:
        stream: Any = writer.add_stream(codec, rate=rate_hz, layout="mono")
        block = av.AudioFrame.from_ndarray((samples[None] * 32_000).astype(np.int16), format="s16", layout="mono")
        block.sample_rate = rate_hz
        converter = av.AudioResampler(stream.format, "mono", rate_hz, frame_size=stream.frame_size or None)
        for part in [*converter.resample(block), *converter.resample(None)]:
            writer.mux(stream.encode(part))
        writer.mux(stream.encode(None))
    return buffer.getvalue()


def test_every_channel_is_heard() -> None:
    tone = melody(5)
    on_the_right = render_wav(np.stack([np.zeros_like(tone), tone], axis=1))
    silence = load_audio(render_wav(np.zeros_like(tone)))
    assert np.array_equal(load_audio(on_the_right, "mllm_tool"), silence), "the papers' recipe hears the first alone"
    heard = load_audio(on_the_right, "robust")
    assert np.abs(heard - load_audio(render_wav(tone / 2))).mean() < 0.01
    assert np.abs(heard - silence).mean() > 0.1


def test_channels_in_opposite_phase_are_heard() -> None:
    tone = melody(5)
    opposite = render_wav(np.stack([tone, -tone], axis=1))
    assert np.array_equal(load_audio(opposite, "robust"), load_audio(render_wav(tone), "robust"))


@pytest.mark.parametrize("seconds", [0.5, 3.0, 20.0])
def test_one_channel_is_equal_in_both_recipes(seconds: float) -> None:
    data = render_wav(melody(seconds, 44_100), 44_100)
    assert np.array_equal(load_audio(data, "robust"), load_audio(data, "mllm_tool"))


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(
    ("container", "codec"), [("wav", "pcm_s16le"), ("mp3", "libmp3lame"), ("ipod", "aac"), ("webm", "libopus")]
)
def test_the_clips_are_those_of_the_whole_track(container: str, codec: str, recipe: str) -> None:
    check_clips(encode(melody(31.7, 48_000), container, codec), recipe)


def check_clips(data: bytes, recipe: str) -> None:
    """That the clips, of which alone the samples are kept, are those of the track decoded whole."""
    samples, rate_hz = decode_audio(data)
    kept = audio._decode_clips(data, DEFAULT_LIMITS, recipe)
    assert (kept.rate_hz, kept.count) == (rate_hz, samples.shape[1])
    n_kept = sum(block.shape[1] for _, block in kept.blocks)
    assert n_kept < 0.5 * samples.shape[1], "what lies between the clips is not kept"
    length = -(-samples.shape[1] * 16_000 // rate_hz)
    for start_s in audio.clip_starts_s(length / 16_000, audio.CLIPS, recipe):
        first = int(start_s * 16_000)
        whole = audio.resample(samples, rate_hz, first, first + 32_000)
        assert np.abs(whole).max() > 0.4
        found = audio._resample_spans(kept, length, [(first, first + 32_000)])[:, first : first + 32_000]
        assert np.abs(found - whole).max() <= 1e-6


def test_a_header_that_tells_the_wrong_length_moves_no_clip() -> None:
    data = encode(melody(31.7, 48_000), "mp3", "libmp3lame")
    start = data.index(b"Xing" if b"Xing" in data else b"Info")
    n_frames = int.from_bytes(data[start + 8 : start + 12], "big")
    lying = data[: start + 8] + (3 * n_frames).to_bytes(4, "big") + data[start + 12 :]
    with open_sound(data) as honest, open_sound(lying) as wrong:
        assert wrong.told_s > 2 * honest.told_s
    check_clips(lying, "mllm_tool")


@pytest.mark.parametrize(
    ("container", "codec"),
    [("wav", "pcm_s16le"), ("flac", "flac"), ("ipod", "alac"), ("mov", "pcm_s16le")],
)
def test_of_a_long_track_the_clips_alone_are_decoded(
    container: str, codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sound, "_decode_whole", lambda *_: pytest.fail("decoded whole"))
    data = encode(melody(91.3, 44_100), container, codec, 44_100)
    for recipe in RECIPES:
        check_clips(data, recipe)


@pytest.mark.parametrize("factor", [0.5, 0.99, 1.01, 2])
def test_a_long_track_whose_header_lies_is_decoded_whole(factor: float) -> None:
    data = encode(melody(130, 44_100), "flac", "flac", 44_100)
    told = int.from_bytes(data[18:26], "big")  # 28 bits of other things, 36 of the number of samples
    n_samples = told & (1 << 36) - 1
    assert n_samples == 130 * 44_100
    lying = told - n_samples + int(factor * n_samples)
    check_clips(data[:18] + lying.to_bytes(8, "big") + data[26:], "mllm_tool")


def test_a_long_track_that_breaks_off_is_heard_as_far_as_it_goes() -> None:
    data = encode(melody(130, 44_100), "wav", "pcm_s16le", 44_100)
    check_clips(data[: int(0.7 * len(data))], "mllm_tool")


def test_sounds_of_one_sample_or_none_are_refused() -> None:
    for recipe in RECIPES:
        with pytest.raises(MediaError, match=r"0\.1 ms of sound; at least 25 ms are needed\."):
            load_audio(render_wav(np.zeros(1)), recipe)
        with pytest.raises(MediaError, match="contains no sound: its track has zero samples"):
            load_audio(render_wav(np.zeros(0)), recipe)


MEASURE = """
import resource, sys
from data_pipeline.media.load import load_audio
load_audio(sys.argv[1], sys.argv[3])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
load_audio(sys.argv[2], sys.argv[3])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.parametrize("recipe", ["mllm_tool", "robust"])
def test_ten_minutes_take_no_more_memory_than_their_clips(recipe: str, tmp_path: Path) -> None:
    (tmp_path / "short.wav").write_bytes(render_wav(np.zeros((3 * 44_100, 2)), 44_100))
    with wave.open(str(tmp_path / "long.wav"), "wb") as writer:
        writer.setparams((2, 2, 44_100, 0, "NONE", ""))
        for _ in range(59):
            writer.writeframes(bytes(10 * 44_100 * 4))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, tmp_path / "short.wav", tmp_path / "long.wav", recipe],
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout) < 40, "MiB more than for three seconds"
