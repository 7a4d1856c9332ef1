"""Noise, hum, reverberation, clipping and lost treble."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.ndimage import uniform_filter1d
from scipy.signal import filtfilt, iirnotch

from serve.tools.audio.spectrum import frame_length, to_samples, to_spectrum
from serve.tools.media import wav_file
from serve.tools.spec import Sound, ToolOutput, ToolSpec, sound_argument

MIN_CLIPPED = 1e-4  # share of the samples


def remove_noise(sound: Sound) -> Sound:
    """Wiener filter with the decision-directed estimate of Ephraim and Malah 1984; the noise from the quietest
    frames."""
    frame = frame_length(sound.rate_hz)
    spectrum = to_spectrum(sound.samples, frame)
    power = np.abs(spectrum) ** 2
    inner = power[4:-4] if len(power) > 16 else power  # the padding is silent
    level = inner.mean(axis=1)
    quiet = inner[level <= np.percentile(level, 15)]
    noise = uniform_filter1d(quiet.mean(axis=0), 5) * 1.1 + 1e-12
    posterior = power / noise
    gains = np.empty(power.shape, np.float32)
    previous = np.ones(power.shape[1])
    for index in range(len(power)):
        prior = 0.96 * previous + 0.04 * np.maximum(posterior[index] - 1, 0)
        gain = np.maximum(prior / (1 + prior), 0.06)
        gains[index] = gain
        previous = gain**2 * posterior[index]
    return _weigh(sound, gains, frame)


def _weigh(sound: Sound, gains: np.ndarray, frame: int) -> Sound:
    """Every channel with the gains float [F, frame // 2 + 1] that its mean asks for, so that nothing moves sideways."""

    def weigh(samples: np.ndarray) -> np.ndarray:
        return to_samples(to_spectrum(samples, frame) * gains, frame, len(samples))

    return each_channel(sound, weigh)


def each_channel(sound: Sound, repair: Callable[[np.ndarray], np.ndarray]) -> Sound:
    """The sound with each channel, float32 [T], repaired by itself."""
    if sound.channels is None:
        return Sound(repair(sound.samples), sound.rate_hz)
    channels = np.stack([repair(channel) for channel in sound.channels])
    return Sound(channels.mean(axis=0, dtype=np.float32), sound.rate_hz, channels)


def find_hum(sound: Sound) -> tuple[float, int] | None:
    """Mains frequency (50 or 60 Hz, as found to 0.1) and the number of its harmonics that stand out; None without
    hum."""
    samples = sound.samples.astype(np.float64)
    size = 1 << int(np.ceil(np.log2(max(len(samples), 4 * sound.rate_hz))))
    power = np.abs(np.fft.rfft(samples * np.hanning(len(samples)), size)) ** 2
    step = sound.rate_hz / size
    best: tuple[float, float, int] | None = None
    for mains in np.concatenate([np.arange(49.5, 50.51, 0.1), np.arange(59.5, 60.51, 0.1)]):
        prominences = []
        for harmonic in range(1, int(min(0.45 * sound.rate_hz, 1600) / mains) + 1):
            at = harmonic * mains / step
            reach = max(1, round(0.4 / step))
            line = power[round(at) - reach : round(at) + reach + 1].max()
            around = np.median(power[max(0, round(at - 20 / step)) : round(at + 20 / step)])
            prominences.append(10 * np.log10((line + 1e-12) / (around + 1e-12)))
        total = float(np.minimum(prominences, 30).sum())
        count = sum(prominence > 12 for prominence in prominences)
        # a voice whose pitch is a multiple of the mains has some of the lines, but neither the first nor most
        is_hum = count >= 3 and (prominences[0] > 15 or count > 0.6 * len(prominences))
        if best is None or total > best[0]:
            best = (total, float(mains), count if is_hum else 0)
    assert best is not None
    return (best[1], best[2]) if best[2] else None


def cut_hum(sound: Sound, mains_hz: float) -> Sound:
    """Narrow notches at the mains frequency and each harmonic up to 2 kHz, forwards and backwards, so without delay."""

    def cut(channel: np.ndarray) -> np.ndarray:
        samples = channel.astype(np.float64)
        for harmonic in range(1, int(min(0.45 * sound.rate_hz, 2000) / mains_hz) + 1):
            center = harmonic * mains_hz
            b, a = iirnotch(center, center / 3.0, fs=sound.rate_hz)  # 3 Hz wide
            samples = filtfilt(b, a, samples)
        return samples.astype(np.float32)

    return each_channel(sound, cut)


def reduce_reverberation(sound: Sound) -> Sound:
    """Late reverberation subtracted in the spectrum (Lebart et al. 2001): what decayed from 50 ms ago is taken off.

    The decay of each band is the slope that its falling stretches have at most.
    """
    frame = frame_length(sound.rate_hz)
    spectrum = to_spectrum(sound.samples, frame)
    power = uniform_filter1d(np.abs(spectrum) ** 2, 3, axis=0) + 1e-12
    hop_s = frame / 4 / sound.rate_hz
    delay = max(1, round(0.05 / hop_s))
    decibels = 10 * np.log10(uniform_filter1d(power.mean(axis=1), 5) + 1e-12)
    steps = np.diff(decibels[8:-8]) / hop_s
    falling = steps[steps < -10]
    slope = float(np.median(falling)) if len(falling) > 10 else -60.0  # dB per second
    keep = 10 ** (float(np.clip(slope, -200, -12)) * delay * hop_s / 10)
    late = np.zeros_like(power)
    late[delay:] = keep * power[:-delay]
    gain = np.sqrt(np.maximum(1 - 1.2 * late / power, 0.02))
    gain = uniform_filter1d(uniform_filter1d(gain, 3, axis=1), 3, axis=0)  # single bins that stay would ring
    return _weigh(sound, gain, frame)


def find_clipping(samples: np.ndarray) -> np.ndarray:
    """Samples that lie on the flat top of a clipped wave, bool [T]: runs at the extreme level of the recording."""
    top, bottom = float(samples.max()), float(samples.min())
    tolerance = 0.004 * max(top, -bottom, 1e-9)
    clipped = np.zeros(len(samples), bool)
    for at_rail in (samples >= top - tolerance, samples <= bottom + tolerance):
        edges = np.flatnonzero(np.diff(np.pad(at_rail.astype(np.int8), 1)))
        for start, end in zip(edges[::2], edges[1::2], strict=True):
            if end - start >= 3:
                clipped[start:end] = True
    return clipped


def restore_peaks(sound: Sound, rounds: int = 60) -> tuple[Sound, float]:
    """Consistent iterative hard thresholding (Kitic et al. 2013): few large coefficients that agree with what was
    not clipped.

    Returns:
        the sound, scaled to a peak of 0.95, and the share of samples that were clipped.
    """
    channels = sound.samples[None] if sound.channels is None else sound.channels
    clipped = np.stack([find_clipping(channel) for channel in channels])
    share = float(clipped.mean())
    if share < MIN_CLIPPED:
        return sound, share
    frame = frame_length(sound.rate_hz, 0.064)
    restored = each_channel(sound, lambda channel: _restore_channel(channel, frame, rounds))
    loudest = restored.samples if restored.channels is None else restored.channels
    scale = 0.95 / (float(np.abs(loudest).max()) + 1e-9)
    scaled = None if restored.channels is None else restored.channels * scale
    return Sound(restored.samples * scale, sound.rate_hz, scaled), share


def _restore_channel(channel: np.ndarray, frame: int, rounds: int) -> np.ndarray:
    """float32 [T] with its clipped peaks estimated, at its old level."""
    clipped = find_clipping(channel)
    if clipped.mean() < MIN_CLIPPED:
        return channel
    samples = channel.astype(np.float64)
    high, low = clipped & (samples > 0), clipped & (samples < 0)
    estimate = samples.copy()
    for number in range(rounds):
        spectrum = to_spectrum(estimate, frame)
        kept = max(2, round((frame // 2 + 1) * 0.35 * (number + 1) / rounds))
        size = np.abs(spectrum)
        threshold = np.partition(size, -kept, axis=1)[:, -kept, None]
        sparse = to_samples(np.where(size >= threshold, spectrum, 0), frame, len(samples)).astype(np.float64)
        estimate = np.where(clipped, sparse, samples)
        estimate[high] = np.maximum(estimate[high], samples[high])  # a clipped peak was higher than the rail
        estimate[low] = np.minimum(estimate[low], samples[low])
    return estimate.astype(np.float32)


def lift_treble(sound: Sound) -> tuple[Sound, float]:
    """Bring muffled highs up to the slope that speech and music have, as far as they stand out of the noise.

    Returns:
        the sound at its old level, and the frequency in Hz from which it was lifted (0 = nowhere).
    """
    frame = frame_length(sound.rate_hz)
    spectrum = to_spectrum(sound.samples, frame)
    bins = np.fft.rfftfreq(frame, 1 / sound.rate_hz)
    power = np.abs(spectrum) ** 2
    mean = 10 * np.log10(uniform_filter1d(power.mean(axis=0), 9) + 1e-12)
    base = float(mean[(bins >= 150) & (bins <= 450)].mean())
    # the long-term spectrum of speech falls by some 9 dB an octave above 500 Hz (Byrne et al. 1994)
    usual = base - 9 * np.log2(np.maximum(bins, 500) / 500)
    quiet = 10 * np.log10(np.percentile(power[4:-4] if len(power) > 16 else power, 10, axis=0) + 1e-12)
    room = np.clip(mean - quiet - 3, 0, 60)  # noise must not become louder than the sound was
    gain = np.clip(np.minimum(usual - mean, room + 20), 0, 50)
    gain = uniform_filter1d(np.where(bins > 500, gain, 0), 9)
    lifted = np.flatnonzero(gain > 6)
    if len(lifted) == 0:
        return sound, 0.0
    raised = _weigh(sound, 10 ** (gain / 20), frame)
    level = np.abs(sound.samples).max() / (np.abs(raised.samples).max() + 1e-9)
    channels = None if raised.channels is None else raised.channels * level
    return Sound(raised.samples * level, sound.rate_hz, channels), float(bins[lifted[0]])


def reduce_noise(audio: Sound) -> ToolOutput:
    """The sound with less noise."""
    text = "Reduced steady noise with a classical Wiener filter; noise that changes quickly stays."
    return ToolOutput(text, wav_file(remove_noise(audio)))


def remove_hum(audio: Sound) -> ToolOutput:
    """The sound without mains hum."""
    found = find_hum(audio)
    if found is None:
        return ToolOutput("Found no hum of 50 or 60 Hz; the sound is given back as it is.", wav_file(audio))
    text = f"Found a hum of {found[0]:.1f} Hz with {found[1]} harmonics and cut it with narrow notches."
    return ToolOutput(text, wav_file(cut_hum(audio, found[0])))


def dereverberate(audio: Sound) -> ToolOutput:
    """The sound with less reverberation."""
    text = "Reduced late reverberation by classical spectral subtraction; the first echoes stay."
    return ToolOutput(text, wav_file(reduce_reverberation(audio)))


def declip(audio: Sound) -> ToolOutput:
    """The sound with its peaks restored."""
    repaired, share = restore_peaks(audio)
    if share < MIN_CLIPPED:
        return ToolOutput("Found no clipping; the sound is given back as it is.", wav_file(audio))
    text = (
        f"{100 * share:.1f} % of the samples were clipped; their peaks were restored by a classical sparse "
        f"estimate, which "
        "is good up to some 20 % and a guess beyond."
    )
    return ToolOutput(text, wav_file(repaired))


def restore_treble(audio: Sound) -> ToolOutput:
    """The sound with its highs lifted."""
    lifted, start_hz = lift_treble(audio)
    if not start_hz:
        return ToolOutput("The high frequencies are not muffled; the sound is given back as it is.", wav_file(audio))
    text = (
        f"Lifted what is left above {start_hz:.0f} Hz with a classical equaliser; what the recording lost "
        f"altogether is not "
        "invented."
    )
    return ToolOutput(text, wav_file(lifted))


TOOLS = (
    ToolSpec(
        "local/reduce-noise",
        reduce_noise,
        "Removes hiss and background noise. A classical Wiener filter in place of a network, for steady noise.",
        (sound_argument(),),
        "audio",
    ),
    ToolSpec(
        "local/remove-hum",
        remove_hum,
        "Removes mains hum. Narrow notches at 50 or 60 Hz and the harmonics.",
        (sound_argument(),),
        "audio",
    ),
    ToolSpec(
        "local/dereverberate",
        dereverberate,
        "Reduces echo and reverberation. Classical spectral subtraction in place of a network: late "
        "reverberation only.",
        (sound_argument(),),
        "audio",
    ),
    ToolSpec(
        "local/declip",
        declip,
        "Repairs an overdriven recording. A classical sparse estimate of the cut peaks, good while less than a "
        "fifth of the "
        "samples are clipped.",
        (sound_argument(),),
        "audio",
    ),
    ToolSpec(
        "local/restore-treble",
        restore_treble,
        "Brings muffled high frequencies back. A classical equaliser in place of a network: it lifts what is "
        "left of them.",
        (sound_argument(),),
        "audio",
    ),
)
