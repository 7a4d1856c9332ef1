"""Networks whose weights lie in packages, in the forms in which they lie there. Only what loads one imports this."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

_N_HEADER = 5  # 32-bit words before the weights of Darknet's file
_CHANNELS = (3, 16, 32, 64, 128, 256, 512, 1024)
# channels in, channels out and kernel of YOLO's layers, in the file's order
YOLO_SHAPES = (
    *((n_in, n_out, 3) for n_in, n_out in pairwise(_CHANNELS)),
    *((1024, 256, 1), (256, 512, 3), (512, 255, 1), (256, 128, 1), (384, 256, 3), (256, 255, 1)),
)
_N_PREDICTED = 255  # channels of the layers that predict, which alone are not normalised
_MEAN_BGR = (104.00699, 116.66877, 122.67892)  # of HED's pictures


class YoloTiny(nn.Module):
    """YOLOv3-tiny."""

    def __init__(self, path: Path) -> None:
        """Read Darknet's file; ValueError where it is another network's."""
        super().__init__()
        weights = np.fromfile(path, dtype="<f4")[_N_HEADER:]
        self.layers, start = nn.ModuleList(), 0
        for n_in, n_out, side in YOLO_SHAPES:
            layer, start = read_layer(weights, start, n_in, n_out, side)
            self.layers.append(layer)
        if start != len(weights):
            raise ValueError(f"{len(weights)} weights instead of {start}")

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """float32 [1, 3, side, side] in [0, 1] -> predictions [1, 255, cells, cells], of large and of small things."""
        layers = self.layers
        for layer in layers[:4]:
            pixels = functional.max_pool2d(_leak(layer(pixels)), 2)
        middle = _leak(layers[4](pixels))
        deep = _leak(layers[5](functional.max_pool2d(middle, 2)))
        deep = functional.max_pool2d(functional.pad(deep, (0, 1, 0, 1), value=float("-inf")), 2, stride=1)
        neck = _leak(layers[7](_leak(layers[6](deep))))
        large = layers[9](_leak(layers[8](neck)))
        finer = functional.interpolate(_leak(layers[10](neck)), scale_factor=2)
        return large, layers[12](_leak(layers[11](torch.cat([finer, middle], dim=1))))

    def predict(self, square: np.ndarray) -> list[np.ndarray]:
        """Of uint8 [side, side, 3] RGB, side a multiple of 32: for large and for small things float32 [3, 85, cells,
        cells], for each anchor x, y, width, height, whether something is there, and 80 kinds, before any sigmoid."""
        with torch.inference_mode():
            pixels = torch.from_numpy(square).to(_device(self)).permute(2, 0, 1)[None].float() / 255
            return [output[0].unflatten(0, (3, -1)).cpu().numpy() for output in self(pixels)]


def _leak(values: torch.Tensor) -> torch.Tensor:
    return functional.leaky_relu(values, 0.1)


def read_layer(weights: np.ndarray, start: int, n_in: int, n_out: int, side: int) -> tuple[nn.Conv2d, int]:
    """A convolution with its normalisation folded in, and where the next one's weights begin."""
    n_rows = 1 if n_out == _N_PREDICTED else 4  # biases; and scales, means, variances
    end = start + n_rows * n_out + n_out * n_in * side * side
    if end > len(weights):
        raise ValueError("the weights end too early")
    part = torch.from_numpy(weights[start:end].copy())
    rows, kernel = part[: n_rows * n_out].view(n_rows, n_out), part[n_rows * n_out :].view(n_out, n_in, side, side)
    bias = rows[0]
    if n_rows == 4:
        scale = rows[1] / torch.sqrt(rows[3] + 1e-5)
        kernel, bias = kernel * scale[:, None, None, None], bias - rows[2] * scale
    return _build_layer(kernel, bias), end


class Hed(nn.Module):
    """HED: five blocks of VGG-16; the edges that each one finds, enlarged, are weighed into one map."""

    def __init__(self, path: Path) -> None:
        """Read Keras's file; KeyError where it is another network's, ImportError without h5py."""
        import h5py  # pyright: ignore[reportMissingImports] - comes with `make networks`, and not with the project

        super().__init__()
        with h5py.File(path) as file:
            self.blocks = nn.ModuleList(
                nn.ModuleList(_read_keras(layer) for layer in _list_layers(file[f"block{number}/layers"]))
                for number in range(1, 6)
            )
            self.sides = nn.ModuleList(_read_keras(file[f"dsn{number}"]) for number in range(1, 6))
            self.fuse = _read_keras(file["fuse"])

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """float32 [1, 3, H, W], BGR less the mean -> chance of an edge, float32 [H, W]."""
        maps, values = [], pixels
        for number, (block, side) in enumerate(zip(self.blocks, self.sides, strict=True)):
            if number:
                values = functional.max_pool2d(values, 2, ceil_mode=True)
            for layer in block:  # pyright: ignore[reportGeneralTypeIssues]
                values = functional.relu(layer(values))
            maps.append(functional.interpolate(side(values), size=pixels.shape[2:], mode="bilinear"))
        return self.fuse(torch.cat(maps, dim=1)).sigmoid()[0, 0]

    def predict(self, image: np.ndarray) -> np.ndarray:
        """Of uint8 [H, W, 3] RGB: the chance of an edge, float32 [H, W]."""
        pixels = torch.from_numpy(image[..., ::-1].astype(np.float32) - np.array(_MEAN_BGR, np.float32))
        with torch.inference_mode():
            return self(pixels.to(_device(self)).permute(2, 0, 1)[None]).cpu().numpy()


def _list_layers(block: Any) -> list[Any]:
    """Those with weights, in their order: conv2d, conv2d_1, conv2d_2."""
    return [block[name] for name in sorted(block) if name.startswith("conv2d")]


def _read_keras(layer: Any) -> nn.Conv2d:
    """Keras keeps a kernel as [height, width, in, out]."""
    kernel, bias = (torch.from_numpy(layer[f"vars/{number}"][()]) for number in range(2))
    return _build_layer(kernel.permute(3, 2, 0, 1).contiguous(), bias)


def _build_layer(kernel: torch.Tensor, bias: torch.Tensor) -> nn.Conv2d:
    """A convolution of [out, in, side, side] that keeps the size."""
    n_out, n_in, side, _ = kernel.shape
    layer = nn.Conv2d(n_in, n_out, side, padding=side // 2)
    layer.load_state_dict({"weight": kernel, "bias": bias})
    return layer


def _device(network: nn.Module) -> torch.device:
    return next(network.parameters()).device
