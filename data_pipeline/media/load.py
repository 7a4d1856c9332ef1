"""The door to media loading: path or bytes to the arrays that the encoder takes (DESIGN 4.5)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from data_pipeline.errors import InputError
from data_pipeline.media import audio, video
from data_pipeline.media.audio import load_audio
from data_pipeline.media.image import SIDE_PX, load_image
from data_pipeline.media.limits import DEFAULT_LIMITS, RECIPES, MediaLimits, MediaSource
from data_pipeline.media.video import load_video
from data_pipeline.records.schema import Modality

__all__ = [
    "LOADED_SHAPES",
    "RECIPES",
    "MediaLimits",
    "MediaSource",
    "load_audio",
    "load_image",
    "load_media",
    "load_video",
]

# of what `load_media` gives, float32
LOADED_SHAPES: dict[Modality, tuple[int, ...]] = {
    Modality.IMAGE: (3, SIDE_PX, SIDE_PX),
    Modality.AUDIO: (audio.CLIPS, 1, audio.MEL_BINS, audio.TARGET_FRAMES),
    Modality.VIDEO: (video.CLIPS * video.VIEWS, 3, video.FRAMES_PER_CLIP, SIDE_PX, SIDE_PX),
}
_LOADERS: dict[Modality, Callable[..., np.ndarray]] = {
    Modality.IMAGE: load_image,
    Modality.AUDIO: load_audio,
    Modality.VIDEO: load_video,
}


def load_media(
    modality: Modality | str, source: MediaSource, recipe: str = "mllm_tool", *, limits: MediaLimits = DEFAULT_LIMITS
) -> np.ndarray:
    """Load a medium of any modality; safe to call from several threads.

    Returns:
        float32: image (3, 224, 224), audio (3, 1, 128, 204), video (15, 3, 2, 224, 224): `LOADED_SHAPES`.

    Raises:
        MediaError: the medium cannot be used; one sentence says why.
        InputError: an unknown recipe, or a modality without media.
    """
    try:
        loader = _LOADERS[Modality(modality)]
    except (ValueError, KeyError) as error:
        raise InputError(
            f"there are no media of modality {str(modality)!r}; use one of {[str(known) for known in _LOADERS]}."
        ) from error
    return loader(source, recipe, limits=limits)
