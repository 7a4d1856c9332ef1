"""Every tool for sounds on recordings whose truth is known."""

from __future__ import annotations

import difflib
from typing import Any

import numpy as np
import pytest
from scipy.signal import butter, sosfilt

from data_pipeline.errors import MediaError
from data_pipeline.sources.toolmm_mini import sounds
from serve.tools.audio import pitch, repair, rhythm, voice
from serve.tools.audio.spectrum import to_samples, to_spectrum
from serve.tools.spec import Sound

RATE = sounds.RATE_HZ


class Recorder:
    """A random generator that remembers what it drew: the truth about what was rendered."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self.draws: list[tuple[str, tuple, Any]] = []

    def __getattr__(self, name: str) -> Any:
        def draw(*args: Any, **options: Any) -> Any:
            value = getattr(self._rng, name)(*args, **options)
            self.draws.append((name, args, value))
            return value

        return draw

    def drawn(self, *args: float) -> Any:
        return next(value for _, given, value in self.draws if given == args)


def speech(seed: int) -> np.ndarray:
    return sounds.render_speech(np.random.default_rng(seed), ("english", "mandarin", "french", "japanese")[seed % 4])


def snr(clean: np.ndarray, other: np.ndarray) -> float:
    scale = (clean @ other) / (other @ other)
    return float(10 * np.log10((clean @ clean) / ((clean - scale * other) ** 2).sum()))


@pytest.mark.parametrize("hz", [82.4, 220.0, 440.3, 987.0])
def test_pitch_is_found_within_a_percent(hz: float) -> None:
    time = np.arange(44_100) / 44_100
    tone = sum(np.sin(2 * np.pi * hz * k * time) / k for k in range(1, 5)) * 0.2
    assert np.nanmedian(pitch.track_pitch(Sound(np.float32(tone), 44_100)).pitch_hz) == pytest.approx(hz, rel=0.01)


def test_noise_has_no_pitch() -> None:
    hiss = np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32)
    assert "No pitch" in pitch.estimate_pitch(Sound(hiss, RATE)).text
    with pytest.raises(MediaError, match="at least"):
        pitch.track_pitch(Sound(hiss[:100], RATE))


def test_the_notes_of_melodies_are_written_down() -> None:
    matched = played = written = 0
    for seed in range(5):
        rng = Recorder(seed)
        melody = sounds.render_melody(rng)  # type: ignore[arg-type]
        steps = [value for name, _, value in rng.draws if name == "choice"][1::2]
        truth = [57 + int(rng.draws[0][2]) + int(step) for step in steps]
        found = [midi for *_, midi in pitch.find_notes(Sound(melody, RATE))]
        blocks = difflib.SequenceMatcher(None, truth, found, autojunk=False).get_matching_blocks()
        matched, played, written = matched + sum(b.size for b in blocks), played + len(truth), written + len(found)
    assert matched >= 0.9 * played
    assert written <= 1.3 * played
    assert pitch.name_note(69) == "A4"


def test_vibrato_is_measured() -> None:
    for seed in range(4):
        rng = Recorder(seed)
        song = sounds.render_singing(rng)  # type: ignore[arg-type]
        rates = [value for _, args, value in rng.draws if args == (5, 6.5)]
        found = pitch.find_vibrato(Sound(song, RATE))
        assert found is not None
        assert found[0] == pytest.approx(np.mean(rates), abs=0.5)
        assert found[1] == pytest.approx(12 * np.log2(1.04), abs=0.12)
    time = np.arange(RATE) / RATE
    assert pitch.find_vibrato(Sound(np.float32(0.3 * np.sin(2 * np.pi * 300 * time)), RATE)) is None


@pytest.mark.parametrize("hz", [50, 440, 3000])
@pytest.mark.parametrize("seconds", [1, 6])
def test_a_steady_tone_has_no_beat_no_heart_and_no_machine(hz: int, seconds: int) -> None:
    time = np.arange(seconds * RATE) / RATE
    tone = Sound(np.float32(0.5 * np.sin(2 * np.pi * hz * time)), RATE)
    assert rhythm.estimate_tempo(tone).text.startswith("No steady beat was found")
    with pytest.raises(MediaError, match="no heartbeat was found"):
        rhythm.measure_heart_rate(tone)
    with pytest.raises(MediaError, match="no machine was found"):
        rhythm.measure_rotation(tone)


@pytest.mark.parametrize("seed", range(5))
def test_tempo_heart_rate_and_rotation_are_measured(seed: int) -> None:
    rng = Recorder(seed)
    tempo, _ = rhythm.find_tempo(Sound(sounds.render_drums(rng), RATE))  # type: ignore[arg-type]
    assert tempo == pytest.approx(rng.drawn(95, 150), rel=0.03)
    rng = Recorder(seed)
    heart = rhythm.find_heart_rate(Sound(sounds.render_heartbeat(rng), RATE))  # type: ignore[arg-type]
    assert heart == pytest.approx(rng.drawn(65, 110), rel=0.03)
    rng = Recorder(seed)
    speed, _ = rhythm.find_rotation(Sound(sounds.render_engine(rng), RATE))  # type: ignore[arg-type]
    assert speed == pytest.approx(rng.drawn(28, 60), rel=0.03)


def test_strokes_of_drums_are_told_apart() -> None:
    rng = Recorder(1)
    drums = sounds.render_drums(rng)  # type: ignore[arg-type]
    start, half_beat = rng.drawn(0, 0.1), 30 / rng.drawn(95, 150)
    strokes = rhythm.find_strokes(Sound(drums, RATE))
    for time, kinds in strokes:
        index = round((time - start) / half_beat)
        assert abs(time - start - index * half_beat) < 0.03
        assert "hi-hat" in kinds
        assert ("snare" in kinds) == (index % 4 == 2)
        assert "kick" in kinds or index % 4 != 0
    assert len(strokes) >= 0.9 * (2.5 - start) / half_beat


def test_chords_are_named() -> None:
    for seed in range(4):
        rng = Recorder(seed)
        piece = sounds.render_chords(rng)  # type: ignore[arg-type]
        roots = [int(value) for name, _, value in rng.draws if name == "integers"]
        thirds = [int(value) for name, _, value in rng.draws if name == "choice"]
        truth = [pitch.NOTE_NAMES[(9 + r) % 12] + ("m" if t == 3 else "") for r, t in zip(roots, thirds, strict=True)]
        assert [name for *_, name in voice.find_chords(Sound(piece, RATE))] == truth


def test_speech_is_marked_where_it_is() -> None:
    noise = np.random.default_rng(0).normal(0, 0.01, 9 * RATE).astype(np.float32)
    recording = noise.copy()
    truth = np.zeros(900, bool)
    for start, seed in ((1.0, 0), (5.0, 1)):
        part = speech(seed)
        recording[int(start * RATE) :][: len(part)] += part
        truth[int(start * 100) :][: len(part) * 100 // RATE] = True
    marked = np.zeros(900, bool)
    for first, last in voice.find_speech(Sound(recording, RATE)):
        marked[round(first * 100) : round(last * 100)] = True
    assert (marked & truth).sum() / (marked | truth).sum() > 0.9
    assert voice.find_speech(Sound(10 * noise, RATE)) == []


def test_noise_and_hum_are_taken_out() -> None:
    time = np.arange(len(speech(0))) / RATE
    hum = 0.12 * sum(np.sin(2 * np.pi * 60 * k * time + k) / k**0.35 for k in range(1, 26))
    for seed in range(4):
        clean = speech(seed)
        noisy = clean + 0.1 * np.random.default_rng(seed).standard_normal(len(clean), np.float32)
        assert snr(clean, repair.remove_noise(Sound(noisy, RATE)).samples) > snr(clean, noisy) + 4
        humming = Sound((clean + hum).astype(np.float32), RATE)
        found = repair.find_hum(humming)
        assert found is not None
        assert found[0] == pytest.approx(60, abs=0.1)
        assert snr(clean, repair.cut_hum(humming, found[0]).samples) > snr(clean, humming.samples) + 6
        assert repair.find_hum(Sound(clean, RATE)) is None


def test_clipped_peaks_and_muffled_highs_come_back() -> None:
    for seed in range(2):
        clean = speech(seed)
        clipped = (0.98 * np.clip(2 * clean / np.abs(clean).max(), -1, 1)).astype(np.float32)
        repaired, share = repair.restore_peaks(Sound(clipped, RATE))
        assert share > 0.02
        assert snr(clean, repaired.samples) > snr(clean, clipped) + 3
        assert repair.restore_peaks(Sound(clean, RATE))[1] < 1e-3
        low = butter(6, 650, "lowpass", fs=RATE, output="sos")
        muffled = np.asarray(sosfilt(low, clean), np.float32)
        lifted, start_hz = repair.lift_treble(Sound(muffled, RATE))
        assert start_hz > 0
        assert log_distance(clean, lifted.samples) < 0.7 * log_distance(clean, muffled)


def log_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Mean difference of the spectra between 500 Hz and 5 kHz, in dB."""
    spectra = [20 * np.log10(np.abs(to_spectrum(x / x.std(), 512)) + 1e-3)[:, 16:160] for x in (a, b)]
    return float(np.abs(spectra[0] - spectra[1]).mean())


def test_reverberation_fades_faster() -> None:
    rng = np.random.default_rng(0)
    bursts = np.zeros(3 * RATE)
    for start in (0.2, 1.2, 2.2):
        bursts[int(start * RATE) :][: RATE // 10] = rng.standard_normal(RATE // 10)
    room = rng.standard_normal(RATE) * np.exp(-np.arange(RATE) / RATE / 0.3)
    wet = np.convolve(bursts, room)[: len(bursts)]
    wet = (wet / np.abs(wet).max()).astype(np.float32)
    dry = repair.reduce_reverberation(Sound(wet, RATE)).samples

    def tail(x: np.ndarray) -> float:
        return float(
            10 * np.log10((x[int(0.6 * RATE) : RATE] ** 2).mean() / (x[int(0.2 * RATE) : int(0.3 * RATE)] ** 2).mean())
        )

    assert tail(dry) < tail(wet) - 3


def test_spectra_go_there_and_back() -> None:
    sound = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    assert np.allclose(to_samples(to_spectrum(sound, 512), 512, 5000), sound, atol=1e-5)
