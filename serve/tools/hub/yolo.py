"""YOLOv3-tiny (Redmon and Farhadi 2018) in Darknet's own files, as a package brings them: 80 kinds of things.

A network of 8.9 M parameters that reads a picture in tenths of a second on a CPU. It stands in where no detector of the
hub is at hand; things that are small, crowded or of another kind it does not see.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from data_pipeline.errors import InputError
from serve.tools.models import LoadedModel, ModelCache, count_bytes, not_available, put_on_device

Box = tuple[str, float, tuple[int, int, int, int]]  # label, score, (x1, y1, x2, y2)

WEIGHTS_FILE, NAMES_FILE = "yolov3-tiny.weights", "coco.names"
MIN_SCORE = 0.5
SIDES_PX = (192, 256, 416)  # a thing that fills the picture is seen at the smaller ones, a small one at the largest
MAX_OVERLAP = 0.45  # of two boxes of one kind, intersection over union
SAME_PLACE = 0.85  # share of the smaller box in a larger one of its kind, from which they are one thing

N_KINDS = 80

_ANCHORS = (((81, 82), (135, 169), (344, 319)), ((23, 27), (37, 58), (81, 82)))  # pixels, of large and small things
_GREY = 128  # of what surrounds a picture in the square that is read
_BEHIND = re.compile(r"\b(?:in|on|at|of|by|with|under|near|behind|beside|which|who|from|to|next)\b")
_ARTICLES = frozenset(["a", "an", "the", "my", "this", "that", "all", "every", "each"])
_SYNONYMS = {
    "people": "person", "human": "person", "airplane": "aeroplane", "plane": "aeroplane", "motorcycle": "motorbike",
    "couch": "sofa", "table": "diningtable", "plant": "pottedplant", "bike": "bicycle", "tv": "tvmonitor",
    "television": "tvmonitor", "mug": "cup", "phone": "cell phone",
}  # fmt: skip
# one of a kind, which the network cannot tell from others of it
_NARROWER = {
    **dict.fromkeys(("man", "woman", "boy", "girl", "child", "kid", "baby", "lady", "guy"), "person"),
    "kitten": "cat", "puppy": "dog",
}  # fmt: skip


def is_yolo(model_id: str) -> bool:
    """Whether a folder holds this network rather than one of transformers."""
    return (Path(model_id) / WEIGHTS_FILE).is_file()


def load_yolo(folder: str) -> LoadedModel:
    """The network, and the names of the kinds that it knows.

    Raises:
        ToolError: "weights_not_available" where the files are another network's.
    """
    from serve.tools.hub.networks import YoloTiny

    try:
        network = YoloTiny(Path(folder) / WEIGHTS_FILE)
        names = (Path(folder) / NAMES_FILE).read_text(encoding="utf-8").split("\n")[:N_KINDS]
    except (OSError, ValueError) as error:
        raise not_available(folder, type(error).__name__) from error
    return LoadedModel((put_on_device(network), names), count_bytes(network))


def find_things(models: ModelCache, folder: str, image: np.ndarray) -> list[Box]:
    """All things that are seen at any of `SIDES_PX`, the surest first, each once."""
    network, names = models.get(folder, load_yolo)
    found = [box for side in SIDES_PX for box in _look(network, names, image, side)]
    kept: list[Box] = []
    for label, score, box in sorted(found, key=lambda each: -each[1]):
        if all(label != other or not _is_same(box, place) for other, _, place in kept):
            kept.append((label, score, box))
    return kept


def _look(network: Any, names: list[str], image: np.ndarray, side: int) -> Iterator[Box]:
    """What is seen of uint8 [H, W, 3] laid into a square of `side` pixels."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    corner = np.array([(side - size[0]) // 2, (side - size[1]) // 2])
    square = np.full((side, side, 3), _GREY, np.uint8)
    square[corner[1] : corner[1] + size[1], corner[0] : corner[0] + size[0]] = cv2.resize(
        image, size, interpolation=cv2.INTER_AREA
    )
    for output, anchors in zip(network.predict(square), _ANCHORS, strict=True):
        scores = _sigmoid(output[:, 4:5]) * _sigmoid(output[:, 5:])  # [3, 80, cells, cells]
        for anchor, row, column in np.argwhere(scores.max(axis=1) >= MIN_SCORE).tolist():
            place = output[anchor, :4, row, column]
            middle = (_sigmoid(place[:2]) + np.array([column, row])) / output.shape[-1] * side
            half = np.exp(place[2:]) * anchors[anchor] / 2
            x1, y1, x2, y2 = (((*(middle - half), *(middle + half)) - np.tile(corner, 2)) / scale).round().astype(int)
            kind = int(scores[anchor, :, row, column].argmax())
            box = (max(0, int(x1)), max(0, int(y1)), min(width, int(x2)), min(height, int(y2)))
            yield names[kind], float(scores[anchor, kind, row, column]), box


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))


def _is_same(box: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> bool:
    """Whether two boxes of one kind are of one thing."""
    width, height = min(box[2], other[2]) - max(box[0], other[0]), min(box[3], other[3]) - max(box[1], other[1])
    common = max(0, width) * max(0, height)
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (box, other)]
    return common > MAX_OVERLAP * (sum(areas) - common) or common > SAME_PLACE * max(1, min(areas))


def find_named_things(models: ModelCache, folder: str, image: np.ndarray, words: str) -> list[Box]:
    """The things that words call, the surest first.

    Raises:
        InputError: the network knows nothing of the kind, or sees several things and cannot tell which is meant.
    """
    _, names = models.get(folder, load_yolo)
    kind, is_any = find_kind(names, words)
    found = [box for box in find_things(models, folder, image) if box[0] == kind]
    if len(found) > 1 and not is_any:
        raise InputError(
            f"{len(found)} things of the kind {kind!r} are seen, and the network that finds them (YOLOv3-tiny) cannot "
            f"tell which is {words[:60]!r}; ask for {kind!r} to have them all, or give a picture of that one alone."
        )
    return found


def find_kind(names: list[str], words: str) -> tuple[str, bool]:
    """The kind of thing that words call, and whether any of it will do: "the dogs" and "the brown dog on the left" are
    both of the kind "dog", the second one of them alone.

    Raises:
        InputError: none of those that are known.
    """
    said = [word for word in words.casefold().split() if word not in _ARTICLES]
    head = _BEHIND.split(" ".join(said))[0].split()
    for start in range(len(head)):
        called = " ".join(head[start:])
        for form in (called, called.removesuffix("s"), called.removesuffix("es")):
            if (kind := _NARROWER.get(form) or _SYNONYMS.get(form, form)) in names:
                return kind, start == 0 and len(head) == len(said) and form not in _NARROWER
    raise InputError(
        f"the network that finds things here (YOLOv3-tiny) does not know {words[:60]!r}; name one of "
        f"{', '.join(names)}, or give the tool a model for any words (tool_models)."
    )
