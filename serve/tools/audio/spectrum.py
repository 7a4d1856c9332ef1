"""Short-time spectra, there and back."""

from __future__ import annotations

import numpy as np
from scipy.signal import get_window

FRAME_S = 0.032


def to_spectrum(samples: np.ndarray, frame: int, hop: int | None = None) -> np.ndarray:
    """complex [F, frame // 2 + 1] of float [T]; padded so that every sample is in as many frames as any other."""
    hop = hop or frame // 4
    padded = np.pad(samples.astype(np.float64), (frame, frame + (-len(samples)) % hop))
    starts = np.arange(0, len(padded) - frame + 1, hop)
    return np.fft.rfft(padded[starts[:, None] + np.arange(frame)] * _window(frame), axis=1)


def to_samples(spectrum: np.ndarray, frame: int, length: int) -> np.ndarray:
    """float32 [length], the inverse of `to_spectrum` with its usual hop of a quarter frame."""
    hop = frame // 4
    frames = np.fft.irfft(spectrum, frame, axis=1) * _window(frame)
    count = len(frames) + 3  # hops; each frame covers four of them
    out, weight = np.zeros((count, hop)), np.zeros((count, hop))
    power = (_window(frame) ** 2).reshape(4, hop)
    for quarter in range(4):
        out[quarter : quarter + len(frames)] += frames[:, quarter * hop : (quarter + 1) * hop]
        weight[quarter : quarter + len(frames)] += power[quarter]
    out, weight = out.ravel(), weight.ravel()
    return (out / np.maximum(weight, 1e-9))[frame : frame + length].astype(np.float32)


def frame_length(rate_hz: int, seconds: float = FRAME_S) -> int:
    """Samples of a frame: even, divisible by four."""
    return max(64, int(rate_hz * seconds) // 4 * 4)


def _window(frame: int) -> np.ndarray:
    return np.asarray(get_window("hann", frame))
