"""Tempo, heart rate, speed of a machine, strokes of drums: what repeats or strikes in a sound."""

from __future__ import annotations

import numpy as np
from scipy.signal import butter, find_peaks, sosfiltfilt

from data_pipeline.errors import MediaError
from serve.tools.audio.pitch import WORKING_RATE_HZ, at_working_rate
from serve.tools.audio.spectrum import to_spectrum
from serve.tools.spec import Sound, ToolOutput, ToolSpec, sound_argument

HOP = 80  # 5 ms
FRAME = 512
ENVELOPE_RATE_HZ = WORKING_RATE_HZ / HOP
# Recordings of animals, made speech and tones lie beyond these bounds (tests/serve/tools/real_media.yaml).
MIN_BEATS, MIN_BEAT_STRENGTH = 3.0, 0.42
MIN_HEART_SHARE, MIN_HEART_STRENGTH = 0.5, 0.3  # of the power in 20 to 150 Hz: 0.99 of a heart, 0.4 of drums
MIN_BUZZ = 2.8  # mean height of the harmonics over what is between them: 3.2 of engines, 1.4 of barks


def find_onset_strength(samples: np.ndarray, low_hz: float = 30, high_hz: float = 8000) -> np.ndarray:
    """How much the spectrum grows every 5 ms, float [F] at 200 Hz (spectral flux of log amplitudes)."""
    size = np.abs(to_spectrum(samples, FRAME, HOP))  # [F,257]
    bins = np.fft.rfftfreq(FRAME, 1 / WORKING_RATE_HZ)
    size = np.log1p(1000 * size[:, (bins >= low_hz) & (bins <= high_hz)] / (size.max() + 1e-9))
    flux = np.zeros(len(size))
    flux[2:] = np.maximum(size[2:] - size[:-2], 0).sum(axis=1)
    first = FRAME // HOP  # `to_spectrum` pads one frame before the sound; an onset shows in the middle of a frame
    return flux[first - FRAME // 2 // HOP :][: len(samples) // HOP]


def _need_seconds(sound: Sound, seconds: float) -> np.ndarray:
    """The samples at the working rate, float32 [T]; MediaError where they are fewer than `seconds`."""
    if sound.duration_s < seconds:
        raise MediaError(f"the sound lasts {sound.duration_s:.3f} s; at least {seconds:.2f} s are needed.")
    return at_working_rate(sound)


def find_period(
    envelope: np.ndarray, rate_hz: float, low_s: float, high_s: float, prefer_s: float | None = None
) -> tuple[float, float]:
    """Period in seconds and its strength (0 to 1) by autocorrelation, refined over its multiples.

    Args:
        envelope: float [F].
        rate_hz: of the envelope.
        low_s, high_s: where the period may lie.
        prefer_s: of periods that fit alike, those near this one win (a log-normal weight of one octave).
    """
    first, last = int(low_s * rate_hz), min(int(high_s * rate_hz) + 1, int(0.8 * len(envelope)))
    if last - first < 3 or len(envelope) < 2:
        raise MediaError(f"the sound is too short for a beat of {low_s:.2f} to {high_s:.2f} s; give a longer one.")
    centered = envelope - envelope.mean()
    size = 1 << int(np.ceil(np.log2(2 * len(centered))))
    correlation = np.fft.irfft(np.abs(np.fft.rfft(centered, size)) ** 2)[: len(centered)]
    if correlation[0] <= 0:
        raise MediaError("the sound is silent or does not change; give one with a beat.")
    overlap = 1 - np.arange(len(correlation)) / len(correlation)
    correlation = correlation / correlation[0] / np.maximum(overlap, 0.2)
    lags = np.arange(len(correlation)) / rate_hz
    weight = np.ones(len(lags))
    if prefer_s is not None:
        weight = np.exp(-0.5 * np.log2(np.maximum(lags, 1e-3) / prefer_s) ** 2)
    score = (correlation * weight)[first:last]
    peaks, _ = find_peaks(score)
    if prefer_s is None and len(peaks):  # multiples of the period fit as well as it does
        highest = score[peaks].max()
        lag = first + int(peaks[score[peaks] >= highest - 0.15 * abs(highest)][0])
    else:
        lag = first + int(peaks[score[peaks].argmax()] if len(peaks) else score.argmax())
    strength = float(correlation[lag])
    period = _refine(correlation, lag)
    for multiple in range(2, 9):  # a peak far out tells the period more finely
        near = period * multiple
        reach = max(2, int(0.06 * period))
        start, end = round(near) - reach, round(near) + reach + 1
        if end >= 0.7 * len(correlation):
            break
        far = start + int(correlation[start:end].argmax())
        if correlation[far] < 0.4 * strength:
            continue
        period = _refine(correlation, far) / multiple
    return period / rate_hz, strength


def _refine(values: np.ndarray, index: int) -> float:
    if not 0 < index < len(values) - 1:
        return float(index)
    before, at, after = values[index - 1 : index + 2]
    bend = before - 2 * at + after
    return index + (float(np.clip(0.5 * (before - after) / bend, -1, 1)) if bend < -1e-12 else 0.0)


def find_tempo(sound: Sound) -> tuple[float, float]:
    """Beats per minute between 50 and 220, and their strength (0 to 1)."""
    period, strength = find_period(
        find_onset_strength(at_working_rate(sound)), ENVELOPE_RATE_HZ, 60 / 220, 60 / 50, prefer_s=0.5
    )
    return 60 / period, strength


def estimate_tempo(audio: Sound) -> ToolOutput:
    """Beats per minute."""
    tempo, strength = find_tempo(audio)
    if strength < MIN_BEAT_STRENGTH or audio.duration_s * tempo / 60 < MIN_BEATS:
        return ToolOutput("No steady beat was found, so there is no tempo to tell.")
    return ToolOutput(
        f"The tempo is {tempo:.1f} beats per minute. By autocorrelation of onsets; half or double of it may be "
        f"counted too."
    )


def find_heart_rate(sound: Sound) -> float:
    """Beats per minute between 40 and 180 from the envelope of 20 to 150 Hz, in which each beat has two thumps."""
    samples = _need_seconds(sound, 2 * 60 / 180)
    low = sosfiltfilt(butter(2, [20, 150], "bandpass", fs=WORKING_RATE_HZ, output="sos"), samples)
    envelope = np.sqrt(np.maximum(sosfiltfilt(butter(2, 12, fs=WORKING_RATE_HZ, output="sos"), low**2), 0))[::HOP]
    period, strength = find_period(envelope, ENVELOPE_RATE_HZ, 60 / 180, 60 / 40)
    is_low = float((low**2).sum()) >= MIN_HEART_SHARE * float((samples.astype(np.float64) ** 2).sum())
    if not is_low or strength < MIN_HEART_STRENGTH:
        raise MediaError("no heartbeat was found in the sound; give a recording of a heart.")
    return 60 / period


def measure_heart_rate(audio: Sound) -> ToolOutput:
    """Beats per minute."""
    return ToolOutput(
        f"The heart beats {find_heart_rate(audio):.0f} times a minute. By autocorrelation of the low sounds; no "
        f"medical device."
    )


def find_rotation(sound: Sound) -> tuple[float, float | None]:
    """Turns per second (10 to 200) and strokes per second (or None) of a machine.

    The turns are the pitch of the buzz: the spacing of its harmonics, found where the product of their amplitudes is
    largest. The strokes are a beat of the sound above 1.5 kHz.
    """
    samples = _need_seconds(sound, 0.08).astype(np.float64)
    size = 1 << int(np.ceil(np.log2(4 * len(samples))))
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples)), size))
    step = WORKING_RATE_HZ / size
    spectrum = np.log(spectrum + 1e-3 * spectrum.max() + 1e-12)
    floor = np.median(spectrum[: int(1000 / step)])
    candidates = np.arange(10, 200, 0.05)
    harmonics = np.arange(1, 9)
    at = np.outer(candidates, harmonics) / step  # [C,8]
    reach = 2
    heights = (
        np.stack([spectrum[(at + offset * 0.004 * at).astype(int)] for offset in range(-reach, reach + 1)]).max(axis=0)
        - floor
    )
    between = spectrum[(np.outer(candidates, harmonics - 0.5) / step).astype(int)] - floor
    score = (heights - 0.8 * between).mean(axis=1)
    if score.max() < MIN_BUZZ:
        raise MediaError("no machine was found in the sound: it has no buzz of many harmonics; give one of a machine.")
    speed = float(candidates[score.argmax()])
    envelope = find_onset_strength(samples, 1500, 4000)
    if len(envelope) < ENVELOPE_RATE_HZ / 4 or np.ptp(envelope) < 1e-9:
        return speed, None  # too short for a stroke and its repeat, or as even as a tone
    period, strength = find_period(envelope, ENVELOPE_RATE_HZ, 0.08, 0.8)
    return speed, 1 / period if strength > 0.15 else None


def measure_rotation(audio: Sound) -> ToolOutput:
    """Speed and beat."""
    speed, strokes = find_rotation(audio)
    beat = f" with {strokes:.2f} strokes a second" if strokes else " without a regular stroke"
    return ToolOutput(
        f"The machine turns {speed:.1f} times a second ({60 * speed:.0f} per minute){beat}. By its harmonics."
    )


def find_strokes(sound: Sound) -> list[tuple[float, tuple[str, ...]]]:
    """(time in s, which of "kick", "snare" and "hi-hat" strike then), told by where in the spectrum a stroke grows."""
    samples = _need_seconds(sound, 0.06)
    strength = find_onset_strength(samples)
    peaks, _ = find_peaks(strength, height=0.25 * strength.max(), distance=int(0.08 * ENVELOPE_RATE_HZ))
    rms = np.sqrt((samples.astype(np.float64) ** 2).mean()) + 1e-9
    strokes = []
    for peak in peaks:
        start = max(0, int((peak - 1) * HOP))
        after = samples[start : start + int(0.06 * WORKING_RATE_HZ)].astype(np.float64)
        before = samples[max(0, start - int(0.03 * WORKING_RATE_HZ)) : start].astype(np.float64)
        low, middle, high = (
            max(0.0, _band_level(after, *band) - _band_level(before, *band)) / rms
            for band in ((30, 180), (600, 4500), (5500, 7900))
        )
        kinds = (("kick", low > 0.5), ("snare", middle > 0.35), ("hi-hat", high > 0.1))
        strokes.append((peak / ENVELOPE_RATE_HZ, tuple(kind for kind, is_struck in kinds if is_struck)))
    return [(time, kinds) for time, kinds in strokes if kinds]


def _band_level(samples: np.ndarray, low_hz: float, high_hz: float) -> float:
    if len(samples) < 64:
        return 0.0
    power = np.abs(np.fft.rfft(samples)) ** 2
    bins = np.fft.rfftfreq(len(samples), 1 / WORKING_RATE_HZ)
    return float(np.sqrt(2 * power[(bins >= low_hz) & (bins <= high_hz)].sum()) / len(samples))


def classify_drums(audio: Sound) -> ToolOutput:
    """Which drum strikes when."""
    strokes = find_strokes(audio)
    if not any("kick" in kinds for _, kinds in strokes):
        return ToolOutput("No drums were found: no stroke has the low thump of a kick drum.")
    counts = ", ".join(f"{sum(kind in kinds for _, kinds in strokes)} {kind}" for kind in ("kick", "snare", "hi-hat"))
    listed = "; ".join(f"{time:.2f} s {' and '.join(kinds)}" for time, kinds in strokes[:80])
    return ToolOutput(f"Found {counts} strokes: {listed}. By classical energies of three bands.")


TOOLS = (
    ToolSpec(
        "local/estimate-tempo",
        estimate_tempo,
        "Estimates the tempo in beats per minute. Autocorrelation of onsets.",
        (sound_argument(),),
        "text",
    ),
    ToolSpec(
        "local/measure-heart-rate",
        measure_heart_rate,
        "Measures the heart rate in a recording of a heart. Autocorrelation of the low sounds; no medical device.",
        (sound_argument(),),
        "text",
    ),
    ToolSpec(
        "local/measure-rotation",
        measure_rotation,
        "Measures the speed and the beat of a machine. From the harmonics of its buzz and the rhythm of its strokes.",
        (sound_argument(),),
        "text",
    ),
    ToolSpec(
        "local/classify-drums",
        classify_drums,
        "Labels the strokes of a drum track. Kick, snare and hi-hat by the energy of three bands, a classical "
        "method in "
        "place of a network.",
        (sound_argument(),),
        "text",
    ),
)
