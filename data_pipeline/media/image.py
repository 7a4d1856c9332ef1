"""Images to encoder input.

Source: ImageBind `data.py::load_and_transform_vision_data`, which MLLM-Tool uses unchanged.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageOps

from data_pipeline.errors import MediaError
from data_pipeline.media.limits import (
    DEFAULT_LIMITS,
    FILE_TYPE_BYTES,
    MediaLimits,
    MediaSource,
    check_pixels,
    clip_starts_s,
    describe_source,
    open_source,
    picture_container,
)

SIDE_PX = 224
RGB_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
RGB_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)

# Formats that Pillow decodes itself; others, such as EPS, start foreign programs.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM")

_WHITES = (1.0, 255.0, 65_535.0)  # what white may be in a grey picture of more than eight bits
_DARKEST_WHITE = 1 / 16  # of these, which the brightest pixel has to reach: 12 bits in 16 are no black picture
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, RuntimeError, struct.error)


def load_image(source: MediaSource, recipe: str = "mllm_tool", *, limits: MediaLimits = DEFAULT_LIMITS) -> np.ndarray:
    """Load an image as the encoder takes it.

    RGB, short side to 224 with Pillow's antialiased bicubic filter, middle 224 x 224, normalised with CLIP's mean and
    deviation. The papers' recipes drop alpha, ignore EXIF's orientation and clip all that has more than eight bits;
    "robust" sees what people see (`to_rgb`). For an upright, opaque picture of eight bits all recipes are equal.

    Args:
        source: a path, or the file's bytes; the format is told by the content, never by the name.
        recipe: one of `limits.RECIPES`.
        limits: what the file may measure.

    Returns:
        float32 (3, 224, 224).

    Raises:
        MediaError: not an image, truncated, empty or over the limits.
        InputError: an unknown recipe.
    """
    clip_starts_s(0.0, 2, recipe)  # for its check of the recipe
    name = describe_source(source)
    with open_image(source, name, limits) as image:
        check_pixels(
            *_working_size(image), name, limits, f"the image ({image.width:,} x {image.height:,}) at its working size"
        )
        rgb = to_rgb(image) if recipe == "robust" else image.convert("RGB")
    resized = _working_size(rgb)
    left, top = (round((side - SIDE_PX) / 2.0) for side in resized)
    # Only the middle is kept, yet the whole is resized: cutting first would change the pixels at the cut.
    scaled = rgb if rgb.size == resized else rgb.resize(resized, Image.Resampling.BICUBIC)
    pixels = np.asarray(scaled.crop((left, top, left + SIDE_PX, top + SIDE_PX)))  # [224,224,3] uint8
    return np.ascontiguousarray(normalise_rgb(pixels.astype(np.float32) / np.float32(255.0)).transpose(2, 0, 1))


def normalise_rgb(pixels: np.ndarray) -> np.ndarray:
    """float32 (..., 3) in [0, 1] -> the same shape, normalised."""
    return (pixels - RGB_MEAN) / RGB_STD


@contextmanager
def open_image(source: MediaSource, name: str, limits: MediaLimits) -> Iterator[Image.Image]:
    """Open an image by its content; nothing but its header is decoded before the block.

    Args:
        source: a path, or the file's bytes.
        name: for messages.
        limits: what the file may measure.

    Raises:
        MediaError: not an image, without pixels, or over the limits; also for what Pillow says of it in the block.
    """
    with open_source(source, limits) as file:
        kind = picture_container(file.read(FILE_TYPE_BYTES))
        file.seek(0)
        try:
            image = Image.open(file, formats=IMAGE_FORMATS)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise MediaError(
                f"{name}: the image has far more pixels than the {limits.max_pixels:,} allowed; scale it down first."
            ) from error
        except _DAMAGE as error:
            what = (
                f"is damaged or a {kind} picture, which cannot be read" if kind else "is not an image that can be read"
            )
            raise MediaError(f"{name} {what}; give one of {', '.join(IMAGE_FORMATS)}.") from error
        with image:
            check_pixels(*image.size, name, limits, "an image")
            if 0 in image.size:
                raise MediaError(f"{name}: the image has no pixels ({image.width} x {image.height}); give another.")
            try:
                yield image
            except MediaError:
                raise
            except _DAMAGE as error:
                raise MediaError(
                    f"{name}: the image is truncated or damaged ({error}); give a complete file."
                ) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """The picture as people see it: eight bits of RGB, upright, its transparent parts white.

    EXIF's orientation is followed. Grey of more than eight bits, or in floats, is scaled: white is 1, 255 or 65,535,
    whichever its brightest pixel comes near to, and otherwise that pixel itself. A picture that is all white on white
    is laid on black.
    """
    upright = ImageOps.exif_transpose(image)
    if upright.mode in ("I", "F") or upright.mode.startswith("I;16"):
        return _scale_grey(upright).convert("RGB")
    if not upright.has_transparency_data:
        return upright.convert("RGB")
    rgba = upright.convert("RGBA")
    for background in ("white", "black"):
        laid = Image.new("RGB", rgba.size, background)
        laid.paste(rgba, mask=rgba.getchannel("A"))
        if laid.getextrema() != ((255, 255),) * 3:
            break
    return laid


def _scale_grey(image: Image.Image) -> Image.Image:
    """Mode I;16, I or F to L."""
    values = np.asarray(image).astype(np.float32)  # [H,W]
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    natural = [white for white in _WHITES if low >= 0 and _DARKEST_WHITE * white <= high <= white]
    black, white = (0.0, natural[0]) if natural else (low, high)
    scale = 255.0 / (white - black) if white > black else 0.0
    levels = np.nan_to_num(values * scale - black * scale, nan=0.0, posinf=255.0, neginf=0.0).clip(0, 255).round()
    if isinstance(see_through := image.info.get("transparency"), int):
        levels[values == see_through] = 255.0
    return Image.fromarray(levels.astype(np.uint8))


def _working_size(image: Image.Image) -> tuple[int, int]:
    """Width and height with a short side of 224 pixels."""
    short, long = sorted(image.size)
    long_px = int(SIDE_PX * long / short)
    return (SIDE_PX, long_px) if image.width <= image.height else (long_px, SIDE_PX)
