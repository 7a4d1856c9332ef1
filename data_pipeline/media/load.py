"""The door to media loading: path or bytes to the arrays that the encoder takes (DESIGN 4.5)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from data_pipeline.errors import InputError
from data_pipeline.media.audio import load_audio
from data_pipeline.media.image import load_image
from data_pipeline.media.limits import DEFAULT_LIMITS, RECIPES, MediaLimits, MediaSource
from data_pipeline.media.video import load_video
from data_pipeline.records.schema import Modality

__all__ = ["RECIPES", "MediaLimits", "MediaSource", "load_audio", "load_image", "load_media", "load_video"]

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
        float32: image (3, 224, 224), audio (3, 1, 128, 204), video (15, 3, 2, 224, 224).

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
