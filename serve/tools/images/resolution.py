"""Motion blur and missing resolution."""

from __future__ import annotations

import cv2
import numpy as np
from skimage.measure import blur_effect

from data_pipeline.errors import InputError
from serve.tools.images.outlines import to_gray
from serve.tools.media import png_file
from serve.tools.spec import Argument, ToolOutput, ToolSpec, picture_argument

MAX_UPSCALED_PIXELS = 40_000_000
MIN_PEAK_DEPTH, SURE_PEAK_DEPTH = 5.0, 12.0  # a smear over 21 pixels has some 25
MIN_BLUR = 0.6  # Crete's measure (2007), of 0 to 1: some 0.45 of a sharp photograph, 0.8 of a smeared one
MAX_DETAIL_RATIO = 0.8
MIN_BLOCK_SCORE = 0.4
MIN_BLOCKS, MIN_BLOCK_PX = 4, 3  # along a side, and pixels of one


def streak_kernel(length: int, angle: float) -> np.ndarray:
    """The blur of a straight motion: a line of `length` (odd) pixels at `angle` radians, float32, summing to 1."""
    kernel = np.zeros((length, length), np.float32)
    middle = (length - 1) / 2
    dx, dy = middle * np.cos(angle), middle * np.sin(angle)
    cv2.line(kernel, (round(middle - dx), round(middle - dy)), (round(middle + dx), round(middle + dy)), 1.0, 1)
    return kernel / kernel.sum()


def estimate_motion(gray: np.ndarray, max_length: int = 61) -> tuple[int, float, float]:
    """Length in pixels (odd), angle in radians and depth (in deviations) of a straight motion blur, by its cepstrum.

    A box of length L has zeros in the spectrum that repeat every 1 / L, which makes a negative peak at distance L
    from the middle of the cepstrum, in the direction of the motion.
    """
    height, width = gray.shape
    side = 512 if min(height, width) <= 512 else 1024
    middle = ((width - 1) / 2, (height - 1) / 2)
    part = cv2.getRectSubPix(np.ascontiguousarray(gray), (min(width, side), min(height, side)), middle).astype(
        np.float32
    )
    window = np.outer(np.hanning(part.shape[0]), np.hanning(part.shape[1]))
    values = (part - part.mean()) * window
    spectrum = np.log(np.abs(np.fft.fft2(values, (side, side))) ** 2 + 1e-2 * values.std() ** 2 + 1e-9)
    cepstrum = np.fft.fftshift(np.fft.ifft2(spectrum - spectrum.mean()).real)  # [side,side]
    cepstrum = cv2.GaussianBlur(cepstrum, (0, 0), 0.8)
    center = side // 2
    reach = min(max_length, side // 4)
    y, x = np.mgrid[0 : reach + 1, -reach : reach + 1]
    radius = np.hypot(x, y)
    part = cepstrum[center : center + reach + 1, center - reach : center + reach + 1].copy()
    part[(radius < 7) | (radius > reach) | ((y == 0) & (x < 0))] = np.inf
    row, column = np.unravel_index(part.argmin(), part.shape)
    length, angle = float(radius[row, column]), float(np.arctan2(y[row, column], x[row, column]))
    usual = part[np.isfinite(part)]
    depth = (np.median(usual) - part[row, column]) / (usual.std() + 1e-12)
    return int(length) // 2 * 2 + 1, angle, float(depth)


def compare_detail(gray: np.ndarray, angle: float) -> float:
    """Mean gradient along `angle` over that across it: motion smears the first and leaves the second."""
    gx, gy = cv2.Sobel(gray, cv2.CV_32F, 1, 0), cv2.Sobel(gray, cv2.CV_32F, 0, 1)
    along = np.abs(gx * np.cos(angle) + gy * np.sin(angle)).mean()
    return float(along / (np.abs(gy * np.cos(angle) - gx * np.sin(angle)).mean() + 1e-6))


def is_smeared(gray: np.ndarray, angle: float, depth: float) -> bool:
    """Whether what `estimate_motion` found is a motion: a deep peak of the cepstrum, or one with smeared detail.

    Hair and walls have a direction of their own: a very deep peak counts where the picture is blurred at all.
    """
    if depth < MIN_PEAK_DEPTH or compare_detail(gray, angle) <= MAX_DETAIL_RATIO:
        return depth >= MIN_PEAK_DEPTH
    return depth >= SURE_PEAK_DEPTH and max(blur_effect(gray, reduce_func=None)) >= MIN_BLUR


def deconvolve(image: np.ndarray, kernel: np.ndarray, noise: float = 0.006) -> np.ndarray:
    """Wiener deconvolution of uint8 [H, W, 3] with soft borders, uint8."""
    pad = 2 * kernel.shape[0]
    padded = cv2.copyMakeBorder(image, pad, pad, pad, pad, cv2.BORDER_REFLECT_101).astype(np.float32) / 255
    # the transform joins opposite borders: fade them into a blurred copy, as MATLAB's edgetaper does
    weight = np.minimum(1, np.minimum(np.arange(padded.shape[0]), np.arange(padded.shape[0])[::-1]) / pad)[:, None]
    weight = weight * np.minimum(1, np.minimum(np.arange(padded.shape[1]), np.arange(padded.shape[1])[::-1]) / pad)
    mean = padded.mean(axis=(0, 1))
    padded = padded * weight[..., None] + mean * (1 - weight[..., None])
    shape = padded.shape[:2]
    transfer = np.zeros(shape, np.float32)
    transfer[: kernel.shape[0], : kernel.shape[1]] = kernel
    transfer = np.fft.rfft2(np.roll(transfer, (-(kernel.shape[0] // 2), -(kernel.shape[1] // 2)), (0, 1)))
    fy, fx = np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None]
    smooth = noise * (1 + 60 * (fx**2 + fy**2))
    inverse = np.conj(transfer) / (np.abs(transfer) ** 2 + smooth)
    planes = [np.fft.irfft2(np.fft.rfft2(padded[..., c]) * inverse, shape) for c in range(3)]
    sharp = np.stack(planes, axis=2)[pad:-pad, pad:-pad]
    return (255 * sharp.clip(0, 1)).astype(np.uint8)


def deblur_image(image: np.ndarray) -> ToolOutput:
    """The picture without its motion blur; without one that can be found, sharpened a little."""
    gray = to_gray(image)
    length, angle, depth = estimate_motion(gray)
    if not is_smeared(gray, angle, depth):
        soft = cv2.GaussianBlur(image, (0, 0), 1.5)
        sharp = cv2.addWeighted(image, 1.8, soft, -0.8, 0)
        text = "Found no straight motion blur; the picture was only sharpened by an unsharp mask."
        return ToolOutput(text, png_file(sharp))
    text = (
        f"Found a motion blur of about {length} pixels at {np.rad2deg(angle):.0f} degrees and took it back with "
        f"classical "
        "Wiener deconvolution."
    )
    return ToolOutput(text, png_file(deconvolve(image, streak_kernel(length, angle))))


def find_blocks(image: np.ndarray, axis: int) -> int | None:
    """How many blocks of one colour lie along `axis` of a blown-up picture; None where there are no blocks.

    Changes happen only at borders of blocks: the count is the one whose borders hold nearly all of them.
    """
    length = image.shape[axis]
    if length < MIN_BLOCKS * MIN_BLOCK_PX:
        return None
    changes = np.abs(np.diff(image.astype(np.int16), axis=axis)).mean(axis=(1 - axis, 2))  # [length-1]
    changes = np.maximum(changes - np.median(changes), 0)  # lossy compression changes a little everywhere
    if changes.sum() < 1e-6:
        return None
    scores: dict[int, float] = {}
    for count in range(max(MIN_BLOCKS, length // 40), length // MIN_BLOCK_PX + 1):
        borders = np.ceil(np.arange(1, count) * length / count).astype(int) - 1
        if np.median(changes[borders]) <= 0.5 * changes.mean():
            continue  # blocks differ nearly everywhere from their neighbours
        by_chance = len(borders) / len(changes)
        scores[count] = float((changes[borders].sum() / changes.sum() - by_chance) / (1 - by_chance))
    best = max(scores.values(), default=0.0)
    if best < MIN_BLOCK_SCORE:
        return None
    return min(count for count, score in scores.items() if score > 0.97 * best)  # its multiples hold the same borders


def gather_blocks(image: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The small picture behind a blown-up one, uint8 [rows, columns, 3]: the middle of each block."""
    y = ((np.arange(rows) + 0.5) * image.shape[0] / rows).astype(int)
    x = ((np.arange(columns) + 0.5) * image.shape[1] / columns).astype(int)
    return image[y][:, x]


def enlarge(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Cubic interpolation with back-projection (Irani and Peleg 1991): scaled down again, it equals the input."""
    target = image.astype(np.float32)
    large = cv2.resize(target, (width, height), interpolation=cv2.INTER_CUBIC)
    for _ in range(6):
        missing = target - cv2.resize(large, image.shape[1::-1], interpolation=cv2.INTER_AREA)
        large += cv2.resize(missing, (width, height), interpolation=cv2.INTER_CUBIC)
    return large.clip(0, 255).round().astype(np.uint8)


def restore_resolution(image: np.ndarray, factor: int) -> tuple[np.ndarray, str]:
    """The picture `factor` times as large, and in words how."""
    height, width = image.shape[:2]
    size = (width * factor, height * factor)
    if size[0] * size[1] > MAX_UPSCALED_PIXELS:
        raise InputError(
            f"a picture of {width} x {height} pixels times {factor} has more than {MAX_UPSCALED_PIXELS:,}; "
            "give a smaller factor or picture."
        )
    rows, columns = find_blocks(image, 0), find_blocks(image, 1)
    how = "with classical cubic interpolation and back-projection; no detail is invented."
    if rows and columns:
        how = f"from the {columns} x {rows} blocks it is made of, {how}"
        return cv2.resize(gather_blocks(image, rows, columns), size, interpolation=cv2.INTER_CUBIC), how
    return enlarge(image, *size), how


def upscale_image(image: np.ndarray, factor: int = 2) -> ToolOutput:
    """The picture enlarged; one made of blocks is smoothed."""
    large, how = restore_resolution(image, factor)
    return ToolOutput(f"Enlarged the picture to {large.shape[1]} x {large.shape[0]} pixels, {how}", png_file(large))


def measure_picture(image: np.ndarray) -> ToolOutput:
    """Width and height."""
    height, width = image.shape[:2]
    return ToolOutput(f"Width {width} pixels, height {height} pixels.")


TOOLS = (
    ToolSpec(
        "local/measure-picture",
        measure_picture,
        "Tells the size of a picture in pixels.",
        (picture_argument(),),
        "text",
        method="exact",
    ),
    ToolSpec(
        "local/deblur-image",
        deblur_image,
        "Sharpens a picture blurred by motion. Classical: a straight motion is estimated and taken back "
        "(Wiener); curved "
        "motion and defocus are only sharpened.",
        (picture_argument(),),
        "image",
    ),
    ToolSpec(
        "local/upscale-image",
        upscale_image,
        "Enlarges a picture of low resolution and smooths its blocks. Classical interpolation in place of a network.",
        (picture_argument(), Argument("factor", "integer", "how many times wider and higher", 2, minimum=1, maximum=4)),
        "image",
    ),
)
