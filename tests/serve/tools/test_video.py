"""Every tool for clips on clips whose truth is known."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from data_pipeline.errors import InputError, MediaError
from data_pipeline.sources.toolmm_mini import clips, pictures
from serve.tools.media import ToolLimits, decode_media, mp4_file
from serve.tools.spec import Clip
from serve.tools.video import cuts, faults, motion


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2)))


def render_clip(kind: str, seed: int) -> Clip:
    return Clip(clips.CLIP_RENDERERS[kind](np.random.default_rng(seed)), 10)


def drift(seed: int) -> np.ndarray:
    photo = pictures.render_photo(np.random.default_rng(seed))
    return np.stack([clips._window(photo, 40 + number / 2, 60) for number in range(12)])


def sweep(seed: int) -> Clip:
    photo = pictures.render_photo(np.random.default_rng(seed))
    return Clip(np.stack([clips._window(photo, x, 60) for x in np.linspace(0, 90, 20)]), 10)


@pytest.mark.parametrize("seed", range(3))
def test_camera_motion_is_measured(seed: int) -> None:
    photo = pictures.render_photo(np.random.default_rng(seed))
    widths = np.geomspace(200, 120, 20)
    zoom = np.stack([clips._window(photo, 128 - w / 2, 128 - w * 0.375, w) for w in widths])
    assert motion.find_zoom(Clip(zoom, 10))[0] == pytest.approx(200 / 120, rel=0.05)
    assert motion.find_flow(sweep(seed)).mean() == pytest.approx(90 / 19, rel=0.35)
    assert (
        "moves -90 pixels" in motion.measure_motion(sweep(seed)).text
        or "moves -89" in motion.measure_motion(sweep(seed)).text
    )
    assert motion.find_flow(render_clip("still", seed)).mean() < 0.05
    panorama = motion.stitch_panorama(sweep(seed)).file
    assert panorama is not None
    pixels = np.array(Image.open(io.BytesIO(panorama.data)))
    assert pixels.shape[1] == pytest.approx(250, abs=3)
    truth = photo[60:180, :250]
    assert psnr(truth[4:-4, 4:-4], pixels[: truth.shape[0], : truth.shape[1]][4:-4, 4:-4]) > 20


@pytest.mark.parametrize("seed", range(3))
def test_a_ball_is_followed(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    centers: list[tuple[int, int]] = []
    draw = cv2.circle

    def record(picture, center, *rest):
        centers.append(center)
        return draw(picture, center, *rest)

    monkeypatch.setattr(cv2, "circle", record)
    clip = render_clip("bounce", seed)
    monkeypatch.undo()
    truth = centers[-2 * clips.FRAMES :: 2]
    track = motion.find_track(clip)
    assert len(track) >= 18
    assert np.mean([np.hypot(x - truth[n][0], y - truth[n][1]) for n, x, y, _ in track]) < 3


@pytest.mark.parametrize("seed", range(4))
def test_cuts_are_found_at_their_frame(seed: int) -> None:
    clip = render_clip("cut", seed)
    (truth,) = (number for number in range(1, 20) if (clip.frames[number] != clip.frames[number - 1]).any())
    assert cuts.find_cuts(clip) == [truth]
    for kind in ("bounce", "flicker", "still"):
        assert cuts.find_cuts(render_clip(kind, seed)) == []
    part = cuts.split_scenes(clip, scene=2).file
    assert part is not None
    assert len(decode_media("video", part.data, ToolLimits()).frames) == 20 - truth  # type: ignore[union-attr]
    with pytest.raises(InputError, match="from 1 to 2"):
        cuts.split_scenes(clip, scene=3)
    first, second = cuts.find_keyframes(clip, 6)
    assert first < truth <= second


def test_the_poster_is_sharp_and_typical() -> None:
    frames = np.repeat(drift(0)[:1], 9, axis=0)
    frames[:4] = cv2.GaussianBlur(frames[0], (0, 0), 4)
    frames[8] = 255
    assert cuts.find_poster(Clip(frames, 10)) in (4, 5, 6, 7)


def test_flicker_is_evened_out() -> None:
    clip = render_clip("flicker", 0)
    evened, jump = faults.even_brightness(clip)
    assert jump > 0.5
    assert evened.frames.mean(axis=(1, 2, 3)).std() < 0.15 * clip.frames.mean(axis=(1, 2, 3)).std()


def test_repairs_come_closer_to_the_sound_clip() -> None:
    clean = drift(1)
    grainy = np.stack([clips._grain(frame, np.random.default_rng(number)) for number, frame in enumerate(clean)])
    assert psnr(clean, faults.reduce_grain(Clip(grainy, 10)).frames) > psnr(clean, grainy) + 5
    hazy = np.stack([pictures.add_haze(frame, np.random.default_rng(0)) for frame in clean])
    assert psnr(clean, faults.clear_haze(Clip(hazy, 10)).frames) > psnr(clean, hazy) + 3
    coarse = np.stack([pictures.add_pixelation(frame, np.random.default_rng(0)) for frame in clean])
    smooth, how = faults.raise_resolution(Clip(coarse, 10), 1)
    assert "blocks" in how
    assert psnr(clean, smooth.frames) > psnr(clean, coarse)
    dark = np.stack([pictures.add_darkness(frame, np.random.default_rng(0)) for frame in clean])
    bright = faults.brighten_video(Clip(dark, 10)).file
    assert bright is not None
    assert psnr(clean, decode_media("video", bright.data, ToolLimits()).frames) > psnr(clean, dark) + 5  # type: ignore[union-attr]


def test_clips_are_bounded() -> None:
    data = mp4_file(render_clip("still", 0)).data
    with pytest.raises(MediaError, match="once decoded"):
        decode_media("video", data, ToolLimits(max_clip_bytes=100_000))
    with pytest.raises(MediaError, match="at least"):
        motion.measure_zoom(Clip(np.zeros((1, 64, 64, 3), np.uint8), 10))
