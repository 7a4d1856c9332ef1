"""Frozen media encoders by name: weights from disk, an id that tells them apart, vectors out (DESIGN 3, idea 1)."""

from __future__ import annotations

import json
import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from data_pipeline import storage
from data_pipeline.errors import InputError
from data_pipeline.media.load import RECIPES
from model.imagebind.network import ImageBind, ImageBindConfig

CHECKPOINT_VARIABLE = "TOOLMM_IMAGEBIND_CHECKPOINT"
WEIGHTS_DIR = Path(__file__).resolve().parents[1] / "weights"
DEFAULT_RECIPE = "robust"
BFLOAT16 = "bf16"  # in the id of an encoder that runs so


class Encoder(Protocol):
    """What turns loaded media into vectors.

    Attributes:
        encoder_id: name, hash of the weights, media recipe, precision: equal ids give equal vectors. Safe as a
            folder name.
        embed_dim: width E of the vectors.
        recipe: how `data_pipeline.media.load` has to load media for it.
    """

    encoder_id: str
    embed_dim: int
    recipe: str

    def encode(self, modality: str, x: Tensor) -> Tensor:
        """A batch as `data_pipeline.media.load` loads it -> (B, E) float32, without gradient."""
        ...


class FrozenImageBind:
    """An ImageBind that is only read from.

    Args:
        net: with its weights.
        encoder_id, recipe: see `Encoder`.
        device, dtype: where and in which precision it runs; inputs are moved and cast.
    """

    def __init__(
        self, net: ImageBind, encoder_id: str, recipe: str, device: str | torch.device, dtype: torch.dtype
    ) -> None:
        self.encoder_id = encoder_id
        self.recipe = recipe
        self.embed_dim = net.config.out_embed_dim
        self.device = torch.device(device)
        self.net = net.to(device=self.device, dtype=dtype).requires_grad_(False)

    @torch.no_grad()
    def encode(self, modality: str, x: Tensor) -> Tensor:
        """Embed a batch; see `ImageBind.encode` for shapes and errors. The result is on the encoder's device."""
        return self.net.encode(modality, x.to(self.device, non_blocking=True))


def load_encoder(
    encoder_id: str,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    default_recipe: str = DEFAULT_RECIPE,
) -> FrozenImageBind:
    """Load an encoder by name.

    Args:
        encoder_id: "imagebind_huge" (its checkpoint is named by the environment variable TOOLMM_IMAGEBIND_CHECKPOINT),
            "tiny_imagebind" (shipped with the code), or a folder with `config.json` and `model.safetensors`.
            A config file holds fields of `ImageBindConfig` and, where it prescribes one, the media `recipe`.
        device, dtype: where and in which precision it runs.
        default_recipe: how media are loaded for an encoder that prescribes no recipe: "robust", but "mllm_tool" where
            the papers' own media are encoded for the papers' numbers.

    Raises:
        InputError: an unknown name, absent or unreadable weights, or weights that do not fit the config.
    """
    if encoder_id == "imagebind_huge":
        # The text tower is never asked for media vectors: leaving it out saves 354 million parameters.
        config, recipe = ImageBindConfig(modalities=("vision", "audio")), default_recipe
        weights = _huge_checkpoint()
    elif encoder_id == "tiny_imagebind":
        weights = WEIGHTS_DIR / "tiny_imagebind.safetensors"
        if not weights.is_file():
            raise InputError(
                f"the weights of tiny_imagebind are absent ({weights}); "
                "make them with `python -m model.imagebind.tiny_encoder`."
            )
        config, recipe = _read_config(WEIGHTS_DIR / "tiny_imagebind.json", default_recipe)
    elif Path(encoder_id).is_dir():
        weights = Path(encoder_id) / "model.safetensors"
        config, recipe = _read_config(Path(encoder_id) / "config.json", default_recipe)
    else:
        raise InputError(
            f"unknown encoder {encoder_id!r}; give 'imagebind_huge', 'tiny_imagebind' or a folder with config.json and "
            "model.safetensors."
        )
    state = _read_weights(weights)
    with torch.device("meta"):
        net = ImageBind(config)  # no random weights are drawn; the checkpoint's tensors become its own
    try:
        net.load_reference_state_dict(state)
    except InputError as error:
        raise InputError(f"encoder {encoder_id!r}, weights {weights}: {error}") from error
    content = storage.hash_file(weights)[:8]
    name = re.sub(r"[^A-Za-z0-9._]+", "_", Path(encoder_id).resolve().name)
    scaled = "-scaled_audio" if config.audio_logit_scale else ""  # the same weights, other vectors
    precision = f"-{BFLOAT16}" if dtype is torch.bfloat16 else ""
    return FrozenImageBind(net, f"{name}-{content}-{recipe}{scaled}{precision}", recipe, device, dtype)


def vector_space(encoder_id: str) -> str:
    """Names the vectors that a model can read which learned from those of this encoder.

    It is the id with "mllm_tool" for "robust". These recipes give equal vectors but for media that the papers' recipe
    sees wrongly (a picture on its side, one that comes out all white), and for sounds of several channels, whose mean
    is close to the first: so a model that learned from the one is served with the other. Likewise for bfloat16, whose
    vectors are those of float32 within its rounding.
    """
    parts = [part for part in encoder_id.split("-") if part != BFLOAT16]
    return "-".join("mllm_tool" if part == "robust" else part for part in parts)


def _huge_checkpoint() -> Path:
    value = os.environ.get(CHECKPOINT_VARIABLE, "")
    if not value:
        raise InputError(
            "imagebind_huge needs its official checkpoint: download imagebind_huge.pth (see model/weights/README.md) "
            f"and set {CHECKPOINT_VARIABLE} to its path on every node."
        )
    path = Path(value)
    if not path.is_file():
        raise InputError(
            f"{CHECKPOINT_VARIABLE} is {value!r}, which is no file; set it to the path of imagebind_huge.pth."
        )
    return path


def _read_config(path: Path, default_recipe: str) -> tuple[ImageBindConfig, str]:
    """Config and media recipe from a JSON file."""
    try:
        fields: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"encoder config {path} does not exist; it belongs beside the weights.") from error
    except (OSError, ValueError) as error:
        raise InputError(f"encoder config {path} cannot be read as JSON: {error}.") from error
    if not isinstance(fields, dict):
        raise InputError(
            f"encoder config {path} holds a {type(fields).__name__}; give an object of ImageBindConfig fields."
        )
    recipe = fields.pop("recipe", default_recipe)
    if recipe not in RECIPES:
        raise InputError(f"encoder config {path}: unknown media recipe {recipe!r}; use one of {list(RECIPES)}.")
    unknown = sorted(set(fields) - set(ImageBindConfig.__dataclass_fields__))
    if unknown:
        raise InputError(
            f"encoder config {path}: unknown field {', '.join(unknown)}; valid are recipe, "
            f"{', '.join(ImageBindConfig.__dataclass_fields__)}."
        )
    try:
        return ImageBindConfig(**fields), recipe
    except (InputError, TypeError) as error:
        raise InputError(f"encoder config {path}: {error}") from error


def _read_weights(path: Path) -> dict[str, Tensor]:
    """A state dict from safetensors or, without unpickling anything but tensors, from a .pth file."""
    if not path.is_file():
        raise InputError(f"encoder weights {path} do not exist; they belong beside their config.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # Only the zip form can be mapped, which spares a second copy of all towers in memory.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"encoder weights {path} cannot be read ({reason}); give a complete .safetensors or .pth file of tensors."
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(
            f"encoder weights {path} hold no state dict; give a file that maps parameter names to tensors."
        )
    return state
