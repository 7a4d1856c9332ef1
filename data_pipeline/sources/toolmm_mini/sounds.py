"""Every kind of sound: speech-like formants of invented languages, faulty recordings, surroundings and music.

The languages are named after real ones because they imitate their rhythm and melody (stress timed and breathy, tonal,
even and rising, short morae with a two-level pitch); nobody would understand them. All sounds are float32 (n,) in -1 to
1 at `RATE_HZ`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.signal import butter, lfilter, sosfilt

RATE_HZ = 16000
DURATION_S = 2.5
_SAMPLES = int(RATE_HZ * DURATION_S)


@dataclass(frozen=True)
class _Language:
    """How an invented language sounds.

    Attributes:
        pitch_hz: range of the speaker's mean pitch.
        syllable_s: shortest and longest syllable.
        pause: share of a syllable that is silent.
        hiss: probability that a syllable starts with a fricative.
        hiss_hz: its band.
        vowels: first three formants of each vowel, Hz.
        melody: name of the rule for the pitch of a syllable.
    """

    pitch_hz: tuple[float, float]
    syllable_s: tuple[float, float]
    pause: float
    hiss: float
    hiss_hz: tuple[float, float]
    vowels: tuple[tuple[float, float, float], ...]
    melody: str


_LANGUAGES = {
    "english": _Language(
        (95, 125), (0.10, 0.36), 0.12, 0.75, (3500, 7500),
        ((500, 1500, 2450), (660, 1720, 2410), (400, 1900, 2550), (730, 1090, 2440)), "falling",
    ),
    "mandarin": _Language(
        (190, 240), (0.24, 0.32), 0.18, 0.25, (5500, 7800),
        ((850, 1300, 2800), (300, 2500, 3200), (400, 900, 2700)), "tones",
    ),
    "french": _Language(
        (140, 170), (0.17, 0.20), 0.0, 0.12, (1500, 2800),
        ((280, 1900, 2300), (380, 1500, 2300), (480, 1000, 2400), (260, 2300, 3000)), "rising",
    ),
    "japanese": _Language(
        (205, 260), (0.105, 0.12), 0.38, 0.3, (4200, 6200),
        ((760, 1180, 2600), (320, 2600, 3200), (360, 1300, 2400), (480, 2100, 2700), (480, 840, 2600)), "two_levels",
    ),
}  # fmt: skip


def _time(duration_s: float) -> np.ndarray:
    return np.arange(int(duration_s * RATE_HZ)) / RATE_HZ


def _peak(sound: np.ndarray, level: float = 0.7) -> np.ndarray:
    return (sound * (level / (np.abs(sound).max() + 1e-9))).astype(np.float32)


def _band(sound: np.ndarray, low_hz: float, high_hz: float, order: int = 2) -> np.ndarray:
    return np.asarray(sosfilt(butter(order, [low_hz, high_hz], "bandpass", fs=RATE_HZ, output="sos"), sound))


def _place(track: np.ndarray, start_s: float, sound: np.ndarray) -> None:
    """Add `sound` to `track` in place, cut at its end."""
    start = int(start_s * RATE_HZ)
    part = sound[: max(0, len(track) - start)]
    track[start : start + len(part)] += part


def _voice(pitch_hz: np.ndarray, formants: tuple[float, ...], rng: np.random.Generator) -> np.ndarray:
    """A buzz of the given pitch contour through a cascade of two-pole formant resonators."""
    phase = np.cumsum(pitch_hz) / RATE_HZ
    buzz = 2 * (phase % 1.0) - 1 + 0.02 * rng.standard_normal(len(phase))
    for index, center in enumerate(formants):
        radius = np.exp(-np.pi * (70 + 50 * index) / RATE_HZ)
        cosine = 2 * radius * np.cos(2 * np.pi * center / RATE_HZ)
        buzz = lfilter([1 - cosine + radius**2], [1, -cosine, radius**2], buzz)
    return np.asarray(buzz) / (np.abs(buzz).max() + 1e-9)


def _contour(melody: str, base_hz: float, position: float, n: int, rng: np.random.Generator) -> np.ndarray:
    """Pitch (n,) in Hz of a syllable at `position` (0 to 1) of the sentence."""
    ramp = np.linspace(0, 1, n)
    match melody:
        case "falling":
            return base_hz * (1.25 - 0.45 * position - 0.12 * ramp) * rng.uniform(0.92, 1.12)
        case "tones":
            tone = rng.integers(4)
            shape = (1.45 + 0 * ramp, 0.8 + 0.75 * ramp, 0.95 - 0.7 * ramp + 0.9 * ramp**2, 1.6 - 0.9 * ramp)[tone]
            return base_hz * shape
        case "rising":
            return base_hz * (1.0 + 0.5 * max(0.0, (position % 0.5) - 0.3) * 4 * ramp)
        case _:
            return base_hz * (1.25 if rng.random() < 0.6 else 0.9) * np.ones(n)


def render_speech(rng: np.random.Generator, language: str) -> np.ndarray:
    """A sentence of an invented language."""
    rules = _LANGUAGES[language]
    track, start = np.zeros(_SAMPLES), rng.uniform(0.0, 0.08)
    base, tract = rng.uniform(*rules.pitch_hz), rng.uniform(0.94, 1.06)
    while start < DURATION_S - 0.1:
        length = rng.uniform(*rules.syllable_s)
        if rng.random() < rules.hiss:
            hiss = rng.standard_normal(int(0.07 * RATE_HZ)) * np.hanning(int(0.07 * RATE_HZ))
            _place(track, start, 0.5 * _band(hiss, *rules.hiss_hz))
            start += 0.055
        n = int(length * (1 - rules.pause) * RATE_HZ)
        formants = tuple(f * tract for f in rules.vowels[rng.integers(len(rules.vowels))])
        syllable = _voice(_contour(rules.melody, base, start / DURATION_S, n, rng), formants, rng)
        edge = min(n // 4, int(0.025 * RATE_HZ))
        envelope = np.ones(n)
        envelope[:edge] = np.linspace(0, 1, edge)
        envelope[n - edge :] = np.linspace(1, 0, edge)
        _place(track, start, syllable * envelope * rng.uniform(0.7, 1.0))
        start += length
    return _peak(track + 2e-4 * rng.standard_normal(_SAMPLES))


def _any_speech(rng: np.random.Generator) -> np.ndarray:
    return render_speech(rng, str(rng.choice(list(_LANGUAGES))))


def render_noisy_speech(rng: np.random.Generator) -> np.ndarray:
    """Speech under broadband hiss."""
    return _peak(_any_speech(rng) + rng.uniform(0.06, 0.16) * rng.standard_normal(_SAMPLES))


def render_humming_speech(rng: np.random.Generator) -> np.ndarray:
    """Speech with mains hum and its harmonics."""
    t, mains = _time(DURATION_S), rng.choice([50.0, 60.0])
    hum = sum(np.sin(2 * np.pi * mains * k * t + rng.uniform(0, 6)) / k**0.35 for k in range(1, 26))
    return _peak(_any_speech(rng) + rng.uniform(0.1, 0.18) * hum)


def render_echoing_speech(rng: np.random.Generator) -> np.ndarray:
    """Speech in a very large hall."""
    decay = np.exp(-_time(1.4) / rng.uniform(0.35, 0.55))
    room = rng.standard_normal(len(decay)) * decay
    speech = _any_speech(rng)
    wet = np.fft.irfft(np.fft.rfft(speech, 2**17) * np.fft.rfft(room, 2**17))[:_SAMPLES]
    return _peak(0.12 * speech + _peak(wet, 0.8))


def render_clipped_speech(rng: np.random.Generator) -> np.ndarray:
    """Speech recorded far too loud."""
    speech = _any_speech(rng)
    return _peak(np.clip(speech * rng.uniform(25, 50), -1, 1), 0.98)


def render_muffled_speech(rng: np.random.Generator) -> np.ndarray:
    """Speech without its high frequencies."""
    low = butter(6, rng.uniform(500, 800), "lowpass", fs=RATE_HZ, output="sos")
    return _peak(np.asarray(sosfilt(low, _any_speech(rng))))


def render_birdsong(rng: np.random.Generator) -> np.ndarray:
    """Chirps between 2 and 7 kHz."""
    track, start = 0.004 * rng.standard_normal(_SAMPLES), rng.uniform(0, 0.15)
    low, high = rng.uniform(2200, 3400), rng.uniform(4300, 6800)
    while start < DURATION_S:
        t = _time(rng.uniform(0.05, 0.16))
        ramp = t / t[-1]
        sweep = (
            low + (high - low) * (ramp, 1 - ramp, 0.5 + 0.5 * np.sin(2 * np.pi * 3 * ramp))[rng.integers(3)]
        ) / RATE_HZ
        _place(track, start, np.sin(2 * np.pi * np.cumsum(sweep)) * np.hanning(len(t)) * rng.uniform(0.5, 1))
        start += len(t) / RATE_HZ + rng.uniform(0.02, 0.2)
    return _peak(track)


def render_engine(rng: np.random.Generator) -> np.ndarray:
    """A machine: a low buzz with a regular clank."""
    t, speed = _time(DURATION_S), rng.uniform(28, 60)
    wobble = speed * (1 + 0.02 * np.sin(2 * np.pi * rng.uniform(0.4, 1.2) * t))
    phase = 2 * np.pi * np.cumsum(wobble) / RATE_HZ
    buzz = sum(np.sin(k * phase + rng.uniform(0, 6)) / k**0.6 for k in range(1, 30))
    track = buzz / 4 + 0.25 * _band(rng.standard_normal(_SAMPLES), 200, 1500) * (1.2 + np.sin(phase))
    ring = _time(0.08)
    clank = np.exp(-ring * 60) * np.sin(2 * np.pi * rng.uniform(1800, 3200) * ring)
    for start in np.arange(rng.uniform(0, 0.2), DURATION_S, rng.uniform(0.16, 0.3)):
        _place(track, start, 1.2 * clank)
    return _peak(track)


def render_heartbeat(rng: np.random.Generator) -> np.ndarray:
    """Low double thumps, 65 to 110 a minute."""
    track, period = 0.003 * rng.standard_normal(_SAMPLES), 60 / rng.uniform(65, 110)
    for start in np.arange(rng.uniform(0, 0.3), DURATION_S, period):
        for delay, level, pitch in ((0.0, 1.0, rng.uniform(45, 60)), (0.33 * period, 0.7, rng.uniform(60, 85))):
            t = _time(0.14)
            _place(track, start + delay, level * np.hanning(len(t)) * np.sin(2 * np.pi * pitch * t))
    return _peak(track, 0.85)


def render_rainfall(rng: np.random.Generator) -> np.ndarray:
    """Rain: shaped noise with drops."""
    track = 0.35 * _band(rng.standard_normal(_SAMPLES), 800, 6500, order=1)
    for start in rng.uniform(0, DURATION_S, int(rng.integers(50, 120))):
        t = _time(0.012)
        _place(track, start, rng.uniform(0.3, 1.2) * np.exp(-t * 400) * np.sin(2 * np.pi * rng.uniform(1500, 5000) * t))
    return _peak(track, 0.6)


def _note_hz(step: float) -> float:
    return 220.0 * 2 ** (step / 12)


def render_melody(rng: np.random.Generator) -> np.ndarray:
    """One plucked instrument playing single notes."""
    track, start, scale = np.zeros(_SAMPLES), 0.0, np.array([0, 2, 4, 5, 7, 9, 11, 12, 14, 16])
    key, brightness = rng.integers(0, 8), rng.uniform(1.0, 1.8)
    while start < DURATION_S:
        length = rng.choice([0.18, 0.27, 0.36])
        t, pitch = _time(length + 0.1), _note_hz(key + rng.choice(scale))
        note = sum(np.sin(2 * np.pi * pitch * k * t) / k**brightness for k in range(1, 7)) * np.exp(-t * 5)
        _place(track, start, note * np.minimum(1, t * 200))
        start += length
    return _peak(track)


def render_chords(rng: np.random.Generator) -> np.ndarray:
    """Slow sustained triads of a pad."""
    track, start = np.zeros(_SAMPLES), 0.0
    while start < DURATION_S:
        length, root = rng.uniform(0.8, 1.1), rng.integers(-7, 6)
        t = _time(length)
        for step in (0, int(rng.choice([3, 4])), 7, 12):
            pitch = _note_hz(int(root) + step)
            tone = sum(np.sin(2 * np.pi * pitch * k * t + rng.uniform(0, 6)) / k**1.2 for k in range(1, 9))
            _place(track, start, tone * np.minimum(1, np.minimum(t, length - t) * 12))
        start += length
    return _peak(track)


def render_drums(rng: np.random.Generator) -> np.ndarray:
    """Kick, snare and hi-hat in four-four time."""
    track, beat = np.zeros(_SAMPLES), 60 / rng.uniform(95, 150)
    t = _time(0.2)
    for index, start in enumerate(np.arange(rng.uniform(0, 0.1), DURATION_S, beat / 2)):
        hat = _band(rng.standard_normal(len(t)), 5500, 7900) * np.exp(-t * 60)
        _place(track, start, 0.7 * hat)
        if index % 4 == 0 or rng.random() < 0.12:
            _place(track, start, 1.3 * np.sin(2 * np.pi * (50 * t + 6 * (1 - np.exp(-t * 30)))) * np.exp(-t * 14))
        elif index % 4 == 2:
            _place(track, start, 0.8 * _band(rng.standard_normal(len(t)), 300, 6000) * np.exp(-t * 22))
    return _peak(track, 0.9)


def render_singing(rng: np.random.Generator) -> np.ndarray:
    """A voice on long notes with strong vibrato."""
    track, start = np.zeros(_SAMPLES), 0.0
    vowel = _LANGUAGES["japanese"].vowels[rng.integers(5)]
    while start < DURATION_S:
        length = rng.uniform(0.5, 0.9)
        t = _time(length)
        pitch = _note_hz(int(rng.integers(6, 22))) * (1 + 0.04 * np.sin(2 * np.pi * rng.uniform(5, 6.5) * t))
        _place(track, start, _voice(pitch, vowel, rng) * np.minimum(1, np.minimum(t, length - t) * 15))
        start += length
    return _peak(track)


def _speaker(language: str) -> Callable[[np.random.Generator], np.ndarray]:
    def render(rng: np.random.Generator) -> np.ndarray:
        return render_speech(rng, language)

    return render


SOUND_RENDERERS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    **{f"{language}_speech": _speaker(language) for language in _LANGUAGES},
    "noisy_speech": render_noisy_speech,
    "humming_speech": render_humming_speech,
    "echoing_speech": render_echoing_speech,
    "clipped_speech": render_clipped_speech,
    "muffled_speech": render_muffled_speech,
    "birdsong": render_birdsong,
    "engine": render_engine,
    "heartbeat": render_heartbeat,
    "rainfall": render_rainfall,
    "melody": render_melody,
    "chords": render_chords,
    "drums": render_drums,
    "singing": render_singing,
}
"""Kind of sound -> function from a random generator to samples, float32 (n,) at `RATE_HZ`."""
