"""A bundle's input embeddings and projector without its language model: prompts with a medium are made of them where
that model runs elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils.hub import cached_file

from data_pipeline.batches.encoding import MEDIA_SLOT_ID
from data_pipeline.errors import InputError
from model.llm.bundle import Bundle

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"


class PromptEmbedding:
    """Embeds sequences as `ToolLLM.embed_prompt` does.

    Attributes:
        n_tokens: V, rows of the table, and of the head.
        max_positions: longest sequence that the backbone has positions for.
    """

    def __init__(self, table: Tensor, projector: nn.Linear, n_tokens: int, max_positions: int) -> None:
        """`table` [V, D] in the precision that sequences shall have."""
        self._table = table
        self._projector = projector
        self.n_tokens = n_tokens
        self.max_positions = max_positions

    @classmethod
    def load(cls, bundle: Bundle, dtype: torch.dtype) -> PromptEmbedding:
        """Read the one table out of the backbone's files, or out of the adapter where it was trained.

        Raises:
            InputError: the backbone has no safetensors file here, or does more than look its embeddings up.
        """
        backbone = bundle.backbone_source()
        config = AutoConfig.from_pretrained(backbone)
        with torch.device("meta"):
            llm = AutoModelForCausalLM.from_config(config)
        module = llm.get_input_embeddings()
        if type(module) is not nn.Embedding:
            raise InputError(
                f"backbone {bundle.info.backbone!r} does more with its input embeddings than look them up "
                f"({type(module).__name__}), so a medium cannot be put among them here; set engine=local."
            )
        name = next(name for name, parameter in llm.named_parameters() if parameter is module.weight)
        table = _read_trained(bundle, name)
        if table is None:
            table = _read_tensor(backbone, name)
        projector = bundle.load_projector(table.shape[1])
        return cls(
            table.to(dtype), projector, int(table.shape[0]), getattr(config, "max_position_embeddings", None) or 1 << 30
        )

    def embed(self, ids: np.ndarray, media: np.ndarray) -> Tensor:
        """[T, D] for a sequence int [T] with `MEDIA_SLOT_ID` where the vector float [E] of its medium stands."""
        tokens = torch.from_numpy(ids.astype(np.int64))
        with torch.inference_mode():
            embeds = self._table[tokens.clamp(min=0)]  # [T, D]
            vector = torch.from_numpy(media.astype(np.float32)).to(self._projector.weight.dtype)
            embeds[tokens == MEDIA_SLOT_ID] = self._projector(vector).to(embeds.dtype)
            return embeds

    def embed_tokens(self, ids: np.ndarray) -> Tensor:
        """[T, D] for tokens int [T]."""
        return self._table[torch.from_numpy(ids.astype(np.int64))]


def _read_trained(bundle: Bundle, name: str) -> Tensor | None:
    """A weight that was trained whole (`modules_to_save`), out of a checked bundle's adapter."""
    with safe_open(bundle.adapter_folder / "adapter_model.safetensors", framework="pt") as weights:
        key = next((key for key in weights.keys() if key.endswith(f".{name}")), None)  # noqa: SIM118  (no dict)
        return None if key is None else weights.get_tensor(key)


def _read_tensor(backbone: str, name: str) -> Tensor:
    """A weight of a backbone in Hugging Face form, a folder or a hub id, whose files may leave out a prefix."""
    optional: dict[str, Any] = {"_raise_exceptions_for_missing_entries": False}
    try:
        index = cached_file(backbone, _INDEX, **optional)
        if index is None:
            file = cached_file(backbone, _WEIGHTS, **optional)
        else:
            with open(index, encoding="utf-8") as opened:
                places: dict[str, str] = json.load(opened)["weight_map"]
            file = cached_file(backbone, places[_find(places, name)], **optional)
        if file is None:
            raise InputError(f"backbone {backbone!r} has no safetensors weights here; save it with save_pretrained.")
        with safe_open(file, framework="pt") as weights:
            return weights.get_tensor(_find(weights.keys(), name))
    except (OSError, SafetensorError, StopIteration, KeyError, ValueError) as error:
        raise InputError(
            f"the input embeddings of backbone {backbone!r} ({name}) cannot be read ({type(error).__name__}); give a "
            "backbone with safetensors weights."
        ) from error


def _find(keys: Iterable[str], name: str) -> str:
    return next(key for key in keys if name.endswith(key) or key.endswith(name))
