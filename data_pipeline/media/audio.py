"""Sound to log-mel spectrograms for the encoder.

Source: ImageBind `data.py::load_and_transform_audio_data` with torchaudio's resampler and Kaldi filter bank.
"""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import numpy as np

from data_pipeline.errors import MediaError
from data_pipeline.media.limits import (
    CLIP_DURATION_S,
    DEFAULT_LIMITS,
    MediaLimits,
    MediaSource,
    clip_starts_s,
    describe_source,
)
from data_pipeline.media.sound import SoundParts, decode_parts

SAMPLE_RATE_HZ = 16_000
CLIPS = 3
MEL_BINS = 128
TARGET_FRAMES = 204
LOG_MEL_MEAN = np.float32(-4.268)
LOG_MEL_STD = np.float32(9.138)

FRAME_SAMPLES = 400  # 25 ms
HOP_SAMPLES = 160  # 10 ms
FFT_SAMPLES = 512
PREEMPHASIS = 0.97
MEL_FLOOR = 1.1920928955078125e-07  # float32 epsilon

SINC_ZEROS = 6
SINC_ROLLOFF = 0.99
RESAMPLE_BLOCK = 1 << 16  # output samples at a time, which bounds the memory of the gathered taps

CANCELLED = 0.01  # of the channels' power; what the mean of two that are in opposite phase falls below

MARGIN_S = 1.0  # kept before and after each clip: for the resampler, and for lengths that are known roughly


def load_audio(source: MediaSource, recipe: str = "mllm_tool", *, limits: MediaLimits = DEFAULT_LIMITS) -> np.ndarray:
    """Load three clips of two seconds as normalised log-mel spectrograms.

    The papers' recipes hear the first channel alone, and "robust" the mean of all, or the loudest one where channels in
    opposite phase would cancel each other. Nothing but the clips is kept in memory.

    Args:
        source: a path, or the file's bytes; any container with a sound track, told by its content.
        recipe: one of `limits.RECIPES`; "imagebind" places the clips otherwise.
        limits: what the file may measure.

    Returns:
        float32 (3, 1, 128, 204): clip, 1, mel bin, frame of 10 ms.

    Raises:
        MediaError: not a sound, damaged, without samples, shorter than 25 ms, or over the limits.
        InputError: an unknown recipe.
    """
    clip_starts_s(0.0, CLIPS, recipe)  # refuse an unknown recipe before decoding
    name = describe_source(source)
    kept = _decode_clips(source, limits, recipe)
    length = math.ceil(kept.count * SAMPLE_RATE_HZ / kept.rate_hz)
    if length < FRAME_SAMPLES:
        raise MediaError(
            f"{name} has {1000 * kept.count / kept.rate_hz:.1f} ms of sound; at least "
            f"{1000 * FRAME_SAMPLES // SAMPLE_RATE_HZ} ms are needed."
        )
    spans = []
    for start_s in clip_starts_s(length / SAMPLE_RATE_HZ, CLIPS, recipe):
        first = int(start_s * SAMPLE_RATE_HZ)
        spans.append((first, min(int((start_s + CLIP_DURATION_S) * SAMPLE_RATE_HZ), length)))
    waveform = _resample_spans(kept, length, spans)
    clips = np.zeros((CLIPS, 1, MEL_BINS, TARGET_FRAMES), np.float32)
    for number, (first, last) in enumerate(spans):
        clip = waveform[:, first:last]
        if not np.isfinite(clip).all():
            raise MediaError(f"{name}: some samples are not finite numbers; re-encode the file.")
        # In place, as the reference does: where clips overlap, a later one sees what an earlier one subtracted.
        clip -= clip.mean()
        log_mel = compute_log_mel(clip[0])[:, :TARGET_FRAMES]
        clips[number, 0, :, : log_mel.shape[1]] = log_mel
    return (clips - LOG_MEL_MEAN) / LOG_MEL_STD


def _decode_clips(source: MediaSource, limits: MediaLimits, recipe: str) -> SoundParts:
    """What lies in the clips, with a margin around them."""

    def place(length_s: float) -> list[tuple[float, float]]:
        starts_s = map(float, clip_starts_s(length_s, CLIPS, recipe))
        return [(start_s - MARGIN_S, start_s + CLIP_DURATION_S + MARGIN_S) for start_s in starts_s]

    kept = decode_parts(source, limits, place)
    return replace(kept, blocks=_mix_down(kept.blocks)) if recipe == "robust" else kept


def _mix_down(blocks: list[tuple[int, np.ndarray]]) -> list[tuple[int, np.ndarray]]:
    """One channel of several, as blocks of (1, samples): their mean, or the loudest where they cancel each other."""
    means = [(position, block.mean(axis=0, keepdims=True)) for position, block in blocks]
    power = sum(np.square(block).sum(axis=1) for _, block in blocks)  # [channels]
    if sum(float(np.square(mean).sum()) for _, mean in means) >= CANCELLED * np.mean(power):
        return means
    loudest = int(np.argmax(power))
    return [(position, block[loudest : loudest + 1]) for position, block in blocks]


def _resample_spans(kept: SoundParts, length: int, spans: list[tuple[int, int]]) -> np.ndarray:
    """The waveform at 16 kHz, (channels, length), computed only inside `spans` (sorted by start) and zero elsewhere."""
    waveform = np.zeros((len(kept.blocks[0][1]), length), np.float32)
    done = 0
    for first, last in spans:
        first = max(first, done)
        if first < last:
            lead = int((first / SAMPLE_RATE_HZ - MARGIN_S / 4) * kept.rate_hz)
            stop = int((last / SAMPLE_RATE_HZ + MARGIN_S / 4) * kept.rate_hz)
            waveform[:, first:last] = resample(kept.cut(lead, stop), kept.rate_hz, first, last, lead)
            done = last
    return waveform


def resample(samples: np.ndarray, rate_hz: int, first: int, last: int, lead: int = 0) -> np.ndarray:
    """Samples `first` to `last` (excluded) of the waveform at 16 kHz.

    Hann-windowed sinc as in `torchaudio.functional.resample` with its defaults, but only the taps inside the window are
    computed, and only for the outputs that are asked for; so it stays small for rates without a large common divisor.

    Args:
        samples: float32 (channels, samples) at `rate_hz`; zero outside.
        first, last: output positions; the whole is 0 to ceil(samples * 16000 / rate_hz).
        lead: number of the first of `samples` in the whole, where they are a part of it.

    Returns:
        float32 (channels, last - first).
    """
    if rate_hz == SAMPLE_RATE_HZ:
        return samples[:, first - lead : last - lead]
    divisor = math.gcd(rate_hz, SAMPLE_RATE_HZ)
    source_step, target_step = rate_hz // divisor, SAMPLE_RATE_HZ // divisor
    taps, reach = _sinc_taps(source_step, target_step)
    out = np.empty((samples.shape[0], last - first), np.float32)
    for begin in range(first, last, RESAMPLE_BLOCK):
        positions = np.arange(begin, min(begin + RESAMPLE_BLOCK, last))  # [n]
        centre = positions * source_step // target_step - lead
        start = int(centre[0]) - reach
        stop = int(centre[-1]) + reach + 2
        window = samples[:, max(start, 0) : max(stop, 0)]
        window = np.pad(window, ((0, 0), (max(-start, 0), max(stop - samples.shape[1], 0))))
        weights = taps[positions % target_step]  # [n,K]
        runs = np.lib.stride_tricks.sliding_window_view(window, taps.shape[1], axis=1)  # [channels,.,K], no copy
        gathered = runs[:, centre - int(centre[0])]  # [channels,n,K]
        out[:, begin - first : begin - first + len(positions)] = np.einsum("cnk,nk->cn", gathered, weights)
    return out


@functools.lru_cache(maxsize=16)
def _sinc_taps(source_step: int, target_step: int) -> tuple[np.ndarray, int]:
    """Filter taps of each output phase.

    Returns:
        float32 (target_step, 2 * reach + 2), tap k belonging to input sample floor(position) - reach + k, and reach.
    """
    cutoff = min(source_step, target_step) * SINC_ROLLOFF
    reach = math.ceil(SINC_ZEROS * source_step / cutoff)
    phase = np.arange(target_step)[:, None]
    whole = phase * source_step // target_step
    offset = np.arange(-reach, reach + 2)[None, :]
    time = ((whole + offset) / source_step - phase / target_step) * cutoff  # in zero crossings
    time = np.clip(time, -SINC_ZEROS, SINC_ZEROS)
    hann = np.cos(time * math.pi / SINC_ZEROS / 2) ** 2
    return (np.sinc(time) * hann * (cutoff / source_step)).astype(np.float32), reach


def compute_log_mel(waveform: np.ndarray) -> np.ndarray:
    """Kaldi's log-mel filter bank: Hann window, pre-emphasis, no dither, no padding at the edges.

    Args:
        waveform: float32 (samples,) at 16 kHz in [-1, 1], at least 400 samples.

    Returns:
        float32 (128, frames), natural logarithm floored at float32 epsilon; frames = 1 + (samples - 400) // 160.
    """
    frames = np.lib.stride_tricks.sliding_window_view(waveform, FRAME_SAMPLES)[::HOP_SAMPLES]  # [F,400]
    frames = frames - frames.mean(axis=1, keepdims=True)
    before = np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    frames = (frames - np.float32(PREEMPHASIS) * before) * _hann_window()
    power = np.abs(np.fft.rfft(frames, FFT_SAMPLES, axis=1)) ** 2  # [F,257]
    mel = power.astype(np.float32) @ _mel_filters()  # [F,128]
    return np.log(np.maximum(mel, np.float32(MEL_FLOOR))).T


@functools.cache
def _hann_window() -> np.ndarray:
    return np.hanning(FRAME_SAMPLES).astype(np.float32)


@functools.cache
def _mel_filters() -> np.ndarray:
    """Kaldi's triangles, 20 Hz to 8 kHz, straight in mel: float32 (257, 128). Narrow low bins catch no line at all."""

    def to_mel(hz: np.ndarray) -> np.ndarray:
        return 1127.0 * np.log1p(hz / 700.0)

    low, high = to_mel(np.array([20.0, SAMPLE_RATE_HZ / 2]))
    edges = np.linspace(low, high, MEL_BINS + 2)  # [130]
    lines = to_mel(np.arange(FFT_SAMPLES // 2 + 1) * (SAMPLE_RATE_HZ / FFT_SAMPLES))[:, None]  # [257,1]
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    filters = np.minimum((lines - left) / (centre - left), (right - lines) / (right - centre))
    filters[-1] = 0.0  # Kaldi leaves out the line at half the sampling rate
    return np.maximum(filters, 0.0).astype(np.float32)
