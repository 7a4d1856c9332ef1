"""The pitch of a sound, and what is read from it: notes and vibrato."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import median_filter
from scipy.signal import resample_poly

from data_pipeline.errors import MediaError
from serve.tools.spec import Argument, Sound, ToolOutput, ToolSpec, sound_argument

WORKING_RATE_HZ = 16_000
HOP_S = 0.01
MIN_NOTES_SHARE = 0.1  # of the time; a bark holds a pitch for a moment
NOTE_NAMES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")


def at_working_rate(sound: Sound) -> np.ndarray:
    """The samples at 16 kHz, float32 [T]."""
    if sound.rate_hz == WORKING_RATE_HZ:
        return sound.samples
    common = np.gcd(sound.rate_hz, WORKING_RATE_HZ)
    return resample_poly(sound.samples, WORKING_RATE_HZ // common, sound.rate_hz // common).astype(np.float32)


@dataclass(frozen=True)
class PitchTrack:
    """Pitch every 10 ms.

    Attributes:
        time_s: float [F], middle of each frame.
        pitch_hz: float [F]; NaN where there is no pitch.
        level: float [F], root mean square.
    """

    time_s: np.ndarray
    pitch_hz: np.ndarray
    level: np.ndarray


def track_pitch(sound: Sound, low_hz: float = 60.0, high_hz: float = 1200.0, window_s: float = 0.04) -> PitchTrack:
    """YIN (de Cheveigne and Kawahara 2002): cumulative mean normalised difference, threshold 0.15, parabolic
    refinement.

    Raises:
        MediaError: the sound is too short for one frame.
    """
    samples = at_working_rate(sound).astype(np.float64)
    rate = WORKING_RATE_HZ
    window, longest = int(window_s * rate), int(np.ceil(rate / low_hz)) + 1
    span, hop = window + longest, int(HOP_S * rate)
    if len(samples) < span:
        raise MediaError(
            f"the sound lasts {len(samples) / rate:.3f} s; at least {span / rate:.3f} s are needed for a pitch."
        )
    starts = np.arange(0, len(samples) - span + 1, hop)
    frames = samples[starts[:, None] + np.arange(span)]  # [F,span]
    size = 1 << int(np.ceil(np.log2(span + window)))
    heads = np.fft.rfft(frames[:, :window], size)
    correlation = np.fft.irfft(np.conj(heads) * np.fft.rfft(frames, size), size)[:, :longest]  # [F,L]
    power = np.cumsum(np.pad(frames**2, ((0, 0), (1, 0))), axis=1)
    shifted = power[:, window : window + longest] - power[:, :longest]
    difference = shifted[:, :1] + shifted - 2 * correlation
    difference[:, 0] = 0
    lags = np.arange(1, longest)
    normalised = np.ones_like(difference)
    normalised[:, 1:] = difference[:, 1:] * lags / np.maximum(np.cumsum(difference[:, 1:], axis=1), 1e-12)
    shortest = max(2, int(rate / high_hz))
    pitch = np.array([_pick_pitch(row, shortest, rate) for row in normalised])
    level = np.sqrt((frames[:, :window] ** 2).mean(axis=1))
    pitch[level < 0.02 * level.max() + 1e-6] = np.nan
    return PitchTrack((starts + span / 2) / rate, pitch, level)


def _pick_pitch(row: np.ndarray, shortest: int, rate: int, threshold: float = 0.15) -> float:
    if (row[2:shortest] < threshold).any():
        return np.nan  # the pitch lies above the range; what fits within it is a multiple of its period
    below = np.flatnonzero(row[shortest:-1] < threshold)
    if len(below) == 0:
        return np.nan
    lag = int(below[0]) + shortest
    while lag + 1 < len(row) - 1 and row[lag + 1] < row[lag]:
        lag += 1
    before, at, after = row[lag - 1 : lag + 2]
    bend = before - 2 * at + after
    return rate / (lag + (0.5 * (before - after) / bend if bend > 1e-12 else 0.0))


def to_midi(pitch_hz: np.ndarray | float) -> np.ndarray:
    """Notes as numbers, 69 = A4 = 440 Hz."""
    return 69 + 12 * np.log2(np.asarray(pitch_hz) / 440.0)


def name_note(midi: int) -> str:
    """Such as "A4" for 69."""
    return f"{NOTE_NAMES[midi % 12]}{midi // 12 - 1}"


def estimate_pitch(audio: Sound, low_hz: float = 60.0, high_hz: float = 1200.0) -> ToolOutput:
    """Median, range and course of the pitch."""
    if low_hz >= high_hz:
        raise MediaError(f"low_hz is {low_hz:g} and high_hz is {high_hz:g}; the first has to be below the second.")
    track = track_pitch(audio, low_hz, high_hz)
    voiced = np.flatnonzero(~np.isnan(track.pitch_hz))
    if len(voiced) == 0:
        return ToolOutput(
            f"No pitch between {low_hz:g} and {high_hz:g} Hz was found: the sound is noise, silence or a mix."
        )
    pitch = track.pitch_hz[voiced]
    low, middle, high = np.percentile(pitch, [5, 50, 95])
    chosen = voiced[np.linspace(0, len(voiced) - 1, min(20, len(voiced))).astype(int)]
    course = ", ".join(f"{track.time_s[index]:.2f} s {track.pitch_hz[index]:.1f}" for index in chosen)
    return ToolOutput(
        f"Median pitch {middle:.1f} Hz ({name_note(round(float(to_midi(middle))))}), from {low:.1f} to {high:.1f} Hz; "
        f"{100 * len(voiced) / len(track.pitch_hz):.0f} % of the time has a pitch. Course in Hz: {course}. By YIN."
    )


def find_notes(sound: Sound) -> list[tuple[float, float, int]]:
    """(start in s, length in s, MIDI number) of each note of a single voice.

    A note ends where the pitch leaves it by more than half a semitone, or where the level jumps up again.
    """
    track = track_pitch(sound, 55, 1800, window_s=0.03)
    midi = median_filter(np.nan_to_num(to_midi(np.where(np.isnan(track.pitch_hz), 440, track.pitch_hz))), 5)
    midi = np.where(np.isnan(track.pitch_hz), np.nan, midi)
    rise = np.zeros(len(track.level))
    rise[3:] = track.level[3:] / (track.level[:-3] + 0.02 * track.level.max() + 1e-9)
    notes: list[tuple[float, float, int]] = []
    start = None
    for index in range(len(midi) + 1):
        is_end = index == len(midi) or np.isnan(midi[index])
        is_change = start is not None and not is_end and abs(midi[index] - np.median(midi[start:index])) > 0.6
        is_struck = (
            start is not None
            and index - start > 8
            and index < len(rise)
            and rise[index] > 1.5
            and rise[index - 1] <= 1.5
        )
        if start is not None and (is_end or is_change or is_struck):
            if index - start >= 6:
                length = (index - start) * HOP_S
                notes.append((float(track.time_s[start]), length, round(float(np.median(midi[start:index])))))
            start = None
        if start is None and not is_end:
            start = index
    return notes


def transcribe_notes(audio: Sound) -> ToolOutput:
    """Names, starts and lengths."""
    notes = find_notes(audio)
    if sum(length for _, length, _ in notes) < MIN_NOTES_SHARE * audio.duration_s:
        return ToolOutput("No notes were found: hardly anything of the sound has a clear pitch.")
    names = " ".join(name_note(midi) for _, _, midi in notes)
    times = ", ".join(f"{name_note(midi)} at {start:.2f} s for {length:.2f} s" for start, length, midi in notes[:60])
    return ToolOutput(
        f"Found {len(notes)} notes: {names}. In detail: {times}. By YIN; of several voices only one is heard."
    )


def find_vibrato(sound: Sound) -> tuple[float, float] | None:
    """Rate in Hz and extent (half of the swing) in semitones of the vibrato; None where there is none.

    Each sustained note is taken by itself: the swing of its pitch about a smooth course, in windows of at least 0.3 s.
    """
    track = track_pitch(sound, 80, 1400, window_s=0.02)
    midi = np.where(np.isnan(track.pitch_hz), np.nan, to_midi(np.where(np.isnan(track.pitch_hz), 440, track.pitch_hz)))
    breaks = np.flatnonzero(np.isnan(midi) | (np.abs(np.diff(midi, prepend=midi[0])) > 0.7))
    edges = [-1, *breaks.tolist(), len(midi)]
    rates, extents, weights = [], [], []
    for first, last in itertools.pairwise(edges):
        part = midi[first + 1 : last]
        if len(part) * HOP_S < 0.3:
            continue
        time = np.arange(len(part)) * HOP_S
        best: tuple[float, float, float] | None = None
        for rate in np.arange(3.5, 9.01, 0.05):  # least squares of one sine on a straight line
            basis = np.stack(
                [np.ones_like(time), time, np.sin(2 * np.pi * rate * time), np.cos(2 * np.pi * rate * time)], 1
            )
            fit, *_ = np.linalg.lstsq(basis, part, rcond=None)
            left = float(((part - basis @ fit) ** 2).sum())
            if best is None or left < best[0]:
                best = (left, float(rate), float(np.hypot(fit[2], fit[3])))
        assert best is not None
        straight = float(((part - np.polyval(np.polyfit(time, part, 1), time)) ** 2).sum())
        if best[0] < 0.5 * straight and best[2] > 0.1:
            rates.append(best[1])
            extents.append(best[2])
            weights.append(len(part))
    if not rates:
        return None
    return float(np.average(rates, weights=weights)), float(np.average(extents, weights=weights))


def measure_vibrato(audio: Sound) -> ToolOutput:
    """Rate and extent of the vibrato."""
    found = find_vibrato(audio)
    if found is None:
        return ToolOutput("No vibrato was found: no note of 0.3 s or more has a pitch that swings regularly.")
    rate, extent = found
    return ToolOutput(
        f"The vibrato has {rate:.1f} swings a second and reaches {100 * extent:.0f} cents "
        f"({100 * (2 ** (extent / 12) - 1):.1f} %) to each side. By the pitch that YIN finds."
    )


TOOLS = (
    ToolSpec(
        "local/estimate-pitch",
        estimate_pitch,
        "Tracks the pitch of a recording in hertz. YIN, for one voice or instrument at a time.",
        (
            sound_argument(),
            Argument("low_hz", "number", "lowest pitch to look for, in Hz", 60.0, minimum=30, maximum=2000),
            Argument("high_hz", "number", "highest pitch to look for, in Hz", 1200.0, minimum=60, maximum=4000),
        ),
        "text",
    ),
    ToolSpec(
        "local/transcribe-notes",
        transcribe_notes,
        "Writes down the notes of a melody. YIN, for one voice or instrument at a time.",
        (sound_argument(),),
        "text",
    ),
    ToolSpec(
        "local/measure-vibrato",
        measure_vibrato,
        "Measures the vibrato of a singing voice. Its rate and extent, from the pitch that YIN finds.",
        (sound_argument(),),
        "text",
    ),
)
