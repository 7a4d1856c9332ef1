"""Images to encoder input.

Source: ImageBind `data.py::load_and_transform_vision_data`, which MLLM-Tool uses unchanged.
"""

from __future__ import annotations

import struct

import numpy as np
from PIL import Image

from data_pipeline.errors import MediaError
from data_pipeline.media.limits import (
    DEFAULT_LIMITS,
    MediaLimits,
    MediaSource,
    check_pixels,
    clip_starts_s,
    describe_source,
    open_source,
)

SIDE_PX = 224
RGB_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
RGB_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)

# Formats that Pillow decodes itself; others, such as EPS, start foreign programs.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")


def load_image(source: MediaSource, recipe: str = "mllm_tool", *, limits: MediaLimits = DEFAULT_LIMITS) -> np.ndarray:
    """Load an image as the encoder takes it.

    RGB (alpha dropped, EXIF orientation ignored), short side to 224 with Pillow's antialiased bicubic filter, middle
    224 x 224, normalised with CLIP's mean and deviation. Both recipes are equal for images.

    Args:
        source: a path, or the file's bytes; the format is told by the content, never by the name.
        recipe: "mllm_tool" or "imagebind".
        limits: what the file may measure.

    Returns:
        float32 (3, 224, 224).

    Raises:
        MediaError: not an image, truncated, empty or over the limits.
        InputError: an unknown recipe.
    """
    clip_starts_s(0.0, 2, recipe)  # for its check of the recipe
    pixels = _decode(source, limits)
    return np.ascontiguousarray(normalise_rgb(pixels.astype(np.float32) / np.float32(255.0)).transpose(2, 0, 1))


def normalise_rgb(pixels: np.ndarray) -> np.ndarray:
    """float32 (..., 3) in [0, 1] -> the same shape, normalised."""
    return (pixels - RGB_MEAN) / RGB_STD


def _decode(source: MediaSource, limits: MediaLimits) -> np.ndarray:
    """uint8 (224, 224, 3)."""
    name = describe_source(source)
    with open_source(source, limits) as file:
        try:
            image = Image.open(file, formats=IMAGE_FORMATS)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise MediaError(
                f"{name}: the image has far more pixels than the {limits.max_pixels:,} allowed; scale it down first."
            ) from error
        except (OSError, SyntaxError, ValueError, struct.error) as error:
            raise MediaError(
                f"{name} is not an image that can be read; give one of {', '.join(IMAGE_FORMATS)}."
            ) from error
        with image:
            width, height = image.size  # from the header: nothing is decoded yet
            check_pixels(width, height, name, limits, "an image")
            short, long = min(width, height), max(width, height)
            if short == 0:
                raise MediaError(f"{name}: the image has no pixels ({width} x {height}); give another.")
            long_px = int(SIDE_PX * long / short)
            resized = (SIDE_PX, long_px) if width <= height else (long_px, SIDE_PX)
            check_pixels(*resized, name, limits, f"the image ({width:,} x {height:,}) at its working size")
            try:
                rgb = image.convert("RGB")
            except (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error) as error:
                raise MediaError(
                    f"{name}: the image is truncated or damaged ({error}); give a complete file."
                ) from error
    left, top = (round((side - SIDE_PX) / 2.0) for side in resized)
    # Only the middle is kept, yet the whole is resized: cutting first would change the pixels at the cut.
    scaled = rgb if rgb.size == resized else rgb.resize(resized, Image.Resampling.BICUBIC)
    return np.asarray(scaled.crop((left, top, left + SIDE_PX, top + SIDE_PX)))
