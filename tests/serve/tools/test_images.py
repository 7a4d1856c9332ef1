"""Every tool for pictures on media whose truth is known."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
from skimage import data

from data_pipeline.sources.toolmm_mini import pictures
from data_pipeline.sources.toolmm_mini.domains import render_portrait
from data_pipeline.sources.toolmm_mini.emblems import render_barcode, render_fabric, render_score, render_text
from data_pipeline.sources.toolmm_mini.scenes import render_scene
from serve.tools.images import drawing, faces, light, noise, outlines, patterns, quality, reading, resolution


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2)))


def as_jpeg(picture: np.ndarray) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 92])[1], cv2.IMREAD_COLOR)


def deblur(picture: np.ndarray) -> np.ndarray:
    length, angle, _ = resolution.estimate_motion(outlines.to_gray(picture))
    return resolution.deconvolve(picture, resolution.streak_kernel(length, angle))


@pytest.mark.parametrize(
    ("fault", "repair", "gain_db"),
    [
        (pictures.add_noise, noise.reduce_noise, 6),
        (pictures.add_rain, noise.remove_rain, 1.5),
        (pictures.add_haze, light.remove_haze, 4),
        (pictures.add_darkness, lambda x: light.apply_exposure(x, *light.find_exposure(x)), 8),
        (pictures.add_blur, deblur, 2),
        (pictures.add_pixelation, lambda x: resolution.restore_resolution(x, 1)[0], 0.3),
    ],
    ids=["denoise", "derain", "dehaze", "brighten", "deblur", "upscale"],
)
def test_a_repair_comes_closer_to_the_sound_picture(
    fault: Callable, repair: Callable[[np.ndarray], np.ndarray], gain_db: float
) -> None:
    gains = []
    for seed in range(5):
        clean = pictures.render_photo(np.random.default_rng(seed))
        faulty = as_jpeg(fault(clean, np.random.default_rng(seed + 100)))
        gains.append(psnr(clean, repair(faulty)) - psnr(clean, faulty))
    assert min(gains) > 0, gains
    assert np.mean(gains) > gain_db, gains


@pytest.mark.parametrize("photo", [data.astronaut(), data.coffee()], ids=["astronaut", "coffee"])
def test_enlarging_beats_cubic_interpolation(photo: np.ndarray) -> None:
    small = cv2.resize(photo, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    large, how = resolution.restore_resolution(small, 2)
    cubic = cv2.resize(small, photo.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    assert "blocks" not in how
    assert psnr(photo, large) > psnr(photo, cubic) + 0.3


def test_lines_and_the_middle_square_are_where_they_are() -> None:
    picture = np.full((120, 200, 3), 255, np.uint8)
    cv2.line(picture, (20, 30), (180, 90), (0, 0, 0), 3)
    x1, y1, x2, y2 = outlines.find_lines(picture)[0]
    ends = sorted([(x1, y1), (x2, y2)])
    assert np.allclose(ends, [(20, 30), (180, 90)], atol=4)
    square = outlines.crop_image(picture, side=50)
    assert "middle 50 x 50" in square.text


def test_quality_falls_with_every_fault_and_names_it() -> None:
    clean = pictures.render_photo(np.random.default_rng(1))
    good = quality.measure_quality(clean).score
    for fault, word in (
        (pictures.add_blur, "not sharp"),
        (pictures.add_noise, "noisy"),
        (pictures.add_darkness, "too dark"),
        (pictures.add_pixelation, "blocks"),
    ):
        faulty = fault(clean, np.random.default_rng(101))
        assert quality.measure_quality(faulty).score < good - 10
        assert word in quality.describe_quality(faulty)


def test_bar_codes_and_qr_codes_are_read_and_never_misread() -> None:
    for seed in range(10):
        rng = np.random.default_rng(seed)
        rng.uniform(size=2)  # the shade of the paper
        digits = [int(digit) for digit in rng.integers(0, 10, 12)]
        digits.append(-sum(digit * (1, 3)[place % 2] for place, digit in enumerate(digits)) % 10)
        number = "".join(map(str, digits))
        contents = [content for _, content in reading.find_codes(render_barcode(np.random.default_rng(seed)))]
        assert contents in ([number], [number.removeprefix("0")])  # an EAN-13 that begins with 0 is a UPC-A
    code = cv2.resize(cv2.QRCodeEncoder.create().encode("tool 42"), None, fx=5, fy=5, interpolation=cv2.INTER_NEAREST)
    code = cv2.copyMakeBorder(code, 20, 20, 20, 20, cv2.BORDER_CONSTANT, value=(255,))
    assert reading.find_codes(np.repeat(code[..., None], 3, axis=2)) == [("QR code", "tool 42")]
    assert reading.find_codes(data.coffee()) == []


def test_lines_of_print_are_found_where_ink_is() -> None:
    page = render_text(np.random.default_rng(0))
    boxes = reading.find_text_lines(page)
    ink = outlines.to_gray(page) < 120
    covered = np.zeros_like(ink)
    for x, y, w, h in boxes:
        covered[y - 2 : y + h + 2, max(0, x - 2) : x + w + 2] = True
    assert 5 <= len(boxes) <= 7
    assert ink[covered].sum() > 0.9 * ink.sum()


def test_faces_are_found_in_photos_and_half_the_drawings() -> None:
    ((x, y, w, h),) = faces.find_faces(data.astronaut())
    assert abs(x + w / 2 - 224) < 20
    assert abs(y + h / 2 - 115) < 25
    assert faces.find_faces(data.chelsea()) == []  # a cat
    hits = 0
    for seed in range(10):
        portrait = render_portrait(np.random.default_rng(seed))
        mouth_y, mouth_x = np.argwhere((portrait == (170, 60, 60)).all(axis=2)).mean(axis=0)
        hits += any(
            x < mouth_x < x + w and y < mouth_y < y + 1.2 * h for x, y, w, h in faces.find_frontal_faces(portrait)
        )
    assert hits >= 5


def test_notes_of_a_score_are_found_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    heads: list[tuple[int, int]] = []
    draw = cv2.ellipse

    def record(picture, center, axes, *rest):
        if axes == (7, 5):
            heads.append(center)
        return draw(picture, center, axes, *rest)

    for seed in range(4):
        heads.clear()
        monkeypatch.setattr(cv2, "ellipse", record)
        score = render_score(np.random.default_rng(seed))
        monkeypatch.undo()
        staves = patterns.find_staves(score)
        found = [head for staff in staves for head in staff.heads]
        assert len(staves) == 2
        assert len(found) == len(heads)
        for x, y in heads:
            assert any(abs(x - a) < 4 and abs(y - b) < 2.6 for a, b in found)
    staff = patterns.Staff(top_px=20, gap_px=10, heads=())
    assert [staff.name_note(y) for y in (60, 55, 40, 20)] == ["E4", "F4", "B4", "F5"]


def test_textures_are_told_apart() -> None:
    x = np.tile(np.arange(256), (256, 1))
    stripes = (128 + 80 * np.sin(2 * np.pi * x / 24)).astype(np.uint8)
    kind, repeats = patterns.classify_texture(np.repeat(stripes[..., None], 3, axis=2))
    assert kind == "striped"
    assert repeats[0][1] == pytest.approx(24, abs=1)
    assert patterns.classify_texture(np.repeat(data.grass()[..., None], 3, axis=2))[0] == "irregular"
    assert patterns.classify_texture(np.full((64, 64, 3), 90, np.uint8))[0] == "plain"
    assert {patterns.classify_texture(render_fabric(np.random.default_rng(s)))[0] for s in range(4)} == {"checked"}


def test_segments_and_soft_edges_follow_the_things() -> None:
    picture = np.zeros((120, 160, 3), np.uint8)
    picture[:, 80:] = (200, 40, 40)
    picture[30:90, 20:60] = (40, 200, 90)
    labels = drawing.find_segments(picture)
    assert len(np.unique(labels[[10, 60, 60], [10, 40, 120]])) == 3
    assert len(np.unique(labels)) <= 5
    scene = render_scene(np.random.default_rng(0), with_person=False)
    soft = drawing.find_soft_edges(scene.photo).astype(float)
    border = cv2.morphologyEx(scene.segments, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    assert soft[border].mean() > 2 * soft[~border].mean()
    assert drawing.draw_sketch(scene.photo).file is not None
