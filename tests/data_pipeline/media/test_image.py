"""Odd pictures: what the robust recipe mends, what it leaves alone, and that the papers' recipe stays as it is."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from data_pipeline.errors import MediaError
from data_pipeline.media.image import load_image, to_rgb

ORIENTATION = 0x0112
# how a camera that is held so stores an upright picture (EXIF 2.32, tag 274)
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def photograph(width: int = 300, height: int = 240) -> Image.Image:
    """RGB, smooth, no two corners alike."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [255 * x / width, 255 * y / height, 127 + 100 * np.sin(x / 30) * np.cos(y / 20)]
    return Image.fromarray(np.stack(planes, axis=2).astype(np.uint8))


def logo(ink: tuple[int, int, int], hidden: tuple[int, int, int]) -> Image.Image:
    """A disc of `ink` on transparent pixels whose unseen colour is `hidden`."""
    picture = Image.new("RGBA", (260, 260), (*hidden, 0))
    ImageDraw.Draw(picture).ellipse((50, 50, 210, 210), fill=(*ink, 255))
    return picture


def encode(picture: Image.Image, image_format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, image_format, **options)
    return buffer.getvalue()


def grey_levels(data: bytes) -> np.ndarray:
    """What the robust recipe makes of a grey picture, uint8 [H, W]."""
    with Image.open(io.BytesIO(data)) as picture:
        pixels = np.asarray(to_rgb(picture))
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


@pytest.mark.parametrize(
    "data",
    [
        encode(photograph(), "JPEG"),
        encode(photograph(120, 400)),
        encode(photograph().convert("L")),
        encode(photograph().convert("P")),
        encode(photograph().convert("1")),
        encode(photograph().convert("CMYK"), "TIFF"),
        encode(photograph().convert("RGBA")),  # opaque
        encode(photograph(), "WEBP"),
        encode(photograph(), "AVIF"),
    ],
)
def test_pictures_without_oddities_are_equal_in_all_recipes(data: bytes) -> None:
    assert np.array_equal(load_image(data, "robust"), load_image(data, "mllm_tool"))


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize(("image_format", "tolerance"), [("PNG", 0.0), ("JPEG", 0.5), ("WEBP", 1.0)])
def test_a_photograph_is_turned_as_its_exif_says(orientation: int, image_format: str, tolerance: float) -> None:
    upright = photograph()
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    turn = STORED[orientation]
    stored = upright if turn is None else upright.transpose(turn)
    options = {} if image_format == "PNG" else {"quality": 95}
    data = encode(stored, image_format, exif=exif, **options)
    found = load_image(data, "robust")
    assert np.abs(found - load_image(encode(upright))).max() <= tolerance
    if turn is not None and image_format == "PNG":
        assert np.array_equal(load_image(data, "mllm_tool"), load_image(encode(stored))), (
            "the papers' recipe ignores it"
        )


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_exif_that_is_damaged_costs_no_picture() -> None:
    data = encode(photograph(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xffgarbage")
    assert np.array_equal(load_image(data, "robust"), load_image(data, "mllm_tool"))


def test_grey_of_sixteen_bits_is_scaled() -> None:
    ramp = np.linspace(0, 65_535, 300 * 240).astype(np.uint16).reshape(240, 300)
    data = encode(Image.fromarray(ramp))
    assert np.abs(grey_levels(data) - ramp / 257).max() <= 0.5
    assert (
        np.abs(
            load_image(data, "robust") - load_image(encode(Image.fromarray((ramp / 257).round().astype(np.uint8))))
        ).max()
        < 0.02
    )
    clipped = load_image(data, "mllm_tool")[0]
    assert (clipped == clipped.max()).mean() > 0.99, "the papers' recipe shows white"


@pytest.mark.parametrize("white", [1.0, 255.0, 65_535.0, 5.0, 1e30])
def test_grey_in_floats_is_scaled_to_what_white_may_be(white: float) -> None:
    ramp = np.linspace(0, white, 240 * 300, dtype=np.float32).reshape(240, 300)
    levels = grey_levels(encode(Image.fromarray(ramp), "TIFF"))
    assert np.abs(levels - 255 * np.linspace(0, 1, 240 * 300).reshape(240, 300)).max() <= 0.6


def test_dark_greys_stay_dark_and_odd_ranges_are_stretched() -> None:
    assert grey_levels(encode(Image.fromarray(np.full((9, 9), 0.25, np.float32)), "TIFF")).max() == 64
    assert grey_levels(encode(Image.fromarray(np.full((9, 9), 16_448, np.uint16)))).max() == 64
    assert grey_levels(encode(Image.fromarray(np.zeros((9, 9), np.float32)), "TIFF")).max() == 0
    assert grey_levels(encode(Image.fromarray(np.full((9, 9), -3.0, np.float32)), "TIFF")).max() == 0
    twelve_bits = np.linspace(0, 4095, 81).astype(np.uint16).reshape(9, 9)
    assert (
        grey_levels(encode(Image.fromarray(twelve_bits))).min(),
        grey_levels(encode(Image.fromarray(twelve_bits))).max(),
    ) == (0, 255)
    signed = np.linspace(-40, 40, 81, dtype=np.float32).reshape(9, 9)
    signed[0, 1], signed[0, 2] = np.nan, np.inf
    levels = grey_levels(encode(Image.fromarray(signed), "TIFF"))
    assert (levels[0, 0], levels[0, 1], levels[0, 2], levels[-1, -1]) == (0, 0, 255, 255)
    assert levels[4, 4] in (127, 128)
    whole = np.linspace(0, 65_535, 81).astype(np.int32).reshape(9, 9)
    assert np.abs(grey_levels(encode(Image.fromarray(whole), "TIFF")) - whole / 257).max() <= 0.5


def test_what_is_transparent_is_white_and_hides_its_colour() -> None:
    black = encode(logo((0, 0, 0), hidden=(0, 0, 0)))
    on_white = Image.new("RGB", (260, 260), "white")
    ImageDraw.Draw(on_white).ellipse((50, 50, 210, 210), fill=(0, 0, 0))
    assert np.array_equal(load_image(black, "robust"), load_image(encode(on_white)))
    assert len(np.unique(load_image(black, "mllm_tool")[0])) == 1, "the papers' recipe shows one colour"
    red = encode(logo((200, 0, 0), hidden=(0, 255, 0)))
    with Image.open(io.BytesIO(red)) as picture:
        assert sorted(color for _, color in to_rgb(picture).getcolors() or []) == [(200, 0, 0), (255, 255, 255)]


@pytest.mark.parametrize(("mode", "image_format"), [("LA", "PNG"), ("PA", "PNG"), ("RGBA", "WEBP"), ("RGBA", "AVIF")])
def test_every_kind_of_transparency_is_seen(mode: str, image_format: str) -> None:
    picture = logo((0, 0, 0), hidden=(0, 0, 0))
    data = encode(picture.quantize(4) if mode == "PA" else picture.convert(mode), image_format)
    assert len(np.unique(load_image(data, "robust")[0].round(1))) > 1
    half = Image.new("RGBA", (30, 30), (0, 0, 0, 128))
    assert np.asarray(to_rgb(half))[0, 0].tolist() == [127] * 3


def test_one_colour_that_stands_for_transparency_is_white() -> None:
    levels = np.array([[0, 257 * 100], [257 * 200, 65_535]], np.uint16)
    assert grey_levels(encode(Image.fromarray(levels), transparency=257 * 100)).tolist() == [[0, 255], [200, 255]]
    colours = Image.new("RGB", (20, 20), (0, 0, 9))
    colours.paste((90, 0, 0), (0, 0, 10, 20))
    with Image.open(io.BytesIO(encode(colours, transparency=(0, 0, 9)))) as picture:
        assert sorted(color for _, color in to_rgb(picture).getcolors() or []) == [(90, 0, 0), (255, 255, 255)]


def test_a_white_logo_is_laid_on_black() -> None:
    white = encode(logo((255, 255, 255), hidden=(255, 255, 255)))
    with Image.open(io.BytesIO(white)) as picture:
        assert sorted(color for _, color in to_rgb(picture).getcolors() or []) == [(0, 0, 0), (255, 255, 255)]


def test_avif_is_read_and_refused_where_it_is_damaged() -> None:
    data = encode(photograph(), "AVIF", quality=95)
    assert np.abs(load_image(data) - load_image(encode(photograph()))).mean() < 0.05
    for end in (20, 60, 300, len(data) // 2, len(data) - 50):
        for recipe in ("mllm_tool", "robust"):
            with pytest.raises(MediaError, match=r"damaged|not an image") as caught:
                load_image(data[:end], recipe)
            assert "\n" not in str(caught.value)


def test_a_heic_picture_is_called_by_its_name() -> None:
    with pytest.raises(MediaError, match=r"damaged or a HEIC picture, which cannot be read; give one of JPEG"):
        load_image(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
