"""HED (Xie and Tu 2015), the network for soft edges, from the Keras file that a package brings."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from serve.tools.images.drawing import scribble
from serve.tools.media import png_file
from serve.tools.models import LoadedModel, ModelCache, count_bytes, not_available, put_on_device
from serve.tools.spec import ToolOutput

WEIGHTS_FILE = "hed_bsds500.weights.h5"
WORKING_SIDE_PX = 480  # as the pictures that it was trained on; some five seconds on a core


def load_hed(folder: str) -> LoadedModel:
    """The network.

    Raises:
        ToolError: "weights_not_available" where the file, or the package that reads it, is missing.
    """
    from serve.tools.hub.networks import Hed

    try:
        network = Hed(Path(folder) / WEIGHTS_FILE)
    except (OSError, KeyError, ImportError) as error:
        raise not_available(folder, type(error).__name__) from error
    return LoadedModel((put_on_device(network),), count_bytes(network))


def find_learned_edges(models: ModelCache, folder: str, image: np.ndarray) -> np.ndarray:
    """Chance of an edge from 0 to 255, uint8 [H, W] for uint8 [H, W, 3]."""
    (network,) = models.get(folder, load_hed)
    scale = min(1.0, WORKING_SIDE_PX / max(image.shape[:2]))
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else image
    edges = cv2.resize(network.predict(small), image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    return (255 * edges).round().astype(np.uint8)


def draw_learned_edges(models: ModelCache, model_id: str, image: np.ndarray) -> ToolOutput:
    """White edges on black."""
    return ToolOutput("Edges of things, by the network HED.", png_file(find_learned_edges(models, model_id, image)))


def draw_learned_sketch(models: ModelCache, model_id: str, image: np.ndarray) -> ToolOutput:
    """Thick white strokes on black, as the paper's scribbles, which are made of HED's edges."""
    strokes = scribble(find_learned_edges(models, model_id, image))
    return ToolOutput("A scribble along the edges that the network HED finds.", png_file(strokes))
