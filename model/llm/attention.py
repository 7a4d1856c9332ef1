"""Attention masks: of a pack, from its one array `subtree_end` (see data_pipeline.batches.answer_tree), and windows.

Some backbones see only the last so many tokens in some or all of their layers. A ready-made mask replaces the one in
which they do so themselves, hence it has to hold the window, measured in positions: in a tree, a token's ancestors are
not its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig

from data_pipeline.errors import InputError

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

AttentionBackend = Literal["sdpa", "flex_attention"]
Mask = TypeVar("Mask")

# By `model_type`, as their code in transformers 5.23 has it: the window is that of every layer, or of the layers whose
# entry in `layer_types` is SLIDING, and then the model takes one mask for each kind of layer.
WINDOW_IN_EVERY_LAYER = ("mistral", "mixtral", "phi3", "starcoder2")
WINDOW_BY_LAYER = ("gemma3_text", "qwen2", "qwen3")
SLIDING = "sliding_attention"
WINDOW_FIELDS = ("sliding_window", "attention_chunk_size")


def choose_backend(
    asked: Literal["auto", "sdpa", "flex_attention"], config: PretrainedConfig, device: str, backbone: str
) -> AttentionBackend:
    """How attention is computed: FlexAttention on CUDA where the backbone can, SDPA elsewhere.

    Args:
        asked: `ModelConfig.attention`.
        config: of the backbone.
        device: "cuda" or "cpu", where it will run.
        backbone: its name, for messages.

    Raises:
        InputError: flex_attention is asked for by name and the backbone cannot.
    """
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    reason = None
    if not getattr(model_class, "_supports_flex_attn", False):
        reason = f"is of type {config.model_type}, which transformers has no flex_attention for"
    elif getattr(config.get_text_config(), "attention_dropout", 0.0):
        reason = "has attention dropout, which flex_attention cannot do"  # OPT may; SDPA computes it as it is
    if asked == "flex_attention" and reason:
        raise InputError(f"backbone {backbone!r} {reason}; set model.attention to sdpa or auto.")
    if asked == "flex_attention" or (asked == "auto" and device == "cuda" and not reason):
        return "flex_attention"
    return "sdpa"


@dataclass(frozen=True)
class AttentionWindow:
    """How far back a backbone's layers see.

    Attributes:
        size: tokens that a windowed layer sees, the token itself included; None without windows.
        layer_kinds: the kinds of layers of which each takes a mask of its own; () where all take the same.
        is_known: whether `masks` can hold the window; if not, sequences must be no longer than it.
    """

    size: int | None
    layer_kinds: tuple[str, ...] = ()
    is_known: bool = True

    @classmethod
    def read(cls, config: PretrainedConfig) -> AttentionWindow:
        """The window in a backbone's config."""
        config = config.get_text_config()
        kinds = tuple(dict.fromkeys(getattr(config, "layer_types", None) or ()))
        sizes = [size for name in WINDOW_FIELDS if isinstance(size := getattr(config, name, None), int)]
        if config.model_type in WINDOW_IN_EVERY_LAYER:
            return cls(config.sliding_window)
        if not sizes or (config.model_type in WINDOW_BY_LAYER and SLIDING not in kinds):
            return cls(None)
        if config.model_type in WINDOW_BY_LAYER:
            return cls(config.sliding_window, kinds)
        return cls(min(sizes), is_known=False)

    def check(self, n_positions: int, backbone: str) -> None:
        """Refuse a sequence of so many positions that a mask cannot hold the window for.

        Raises:
            InputError: names both lengths.
        """
        if not self.is_known and self.size is not None and n_positions > self.size:
            raise InputError(
                f"a question with its answers is {n_positions} tokens long, but layers of backbone {backbone!r} see "
                f"{self.size} tokens, which packs and the search do not know how to mask in this architecture; shorten "
                "the questions (train.max_target_tokens, train.max_dialogue_tokens), or take another backbone."
            )

    def masks(self, build: Callable[[int | None], Mask]) -> Mask | dict[str, Mask]:
        """The mask that the backbone takes, or one for each kind of layer.

        Args:
            build: makes the mask under which a key is seen from less than so many positions away; from anywhere for
                None.
        """
        if not self.layer_kinds:
            return build(self.size if self.is_known else None)
        return {kind: build(self.size if kind == SLIDING else None) for kind in self.layer_kinds}


def build_mask(
    subtree_end: Tensor,
    position_ids: Tensor,
    window: int | None,
    backend: AttentionBackend,
    dtype: torch.dtype,
) -> Tensor | BlockMask:
    """Mask under which query q sees key k iff k <= q < subtree_end[k] and they are less than `window` positions apart.

    Args:
        subtree_end: integer [B, T].
        position_ids: integer [B, T].
        window: None where a token sees however far back.
        backend: "sdpa" gives an additive mask [B, 1, T, T], 0 where seen and the lowest number elsewhere;
            "flex_attention" a BlockMask, which costs no T*T memory in the attention kernel and skips blocks that
            nobody sees.
        dtype: of the additive mask.
    """
    batch_size, n_tokens = subtree_end.shape
    if backend == "flex_attention":
        from torch.nn.attention.flex_attention import create_block_mask

        def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Any:
            seen = (key <= query) & (query < subtree_end[batch, key])
            if window is None:
                return seen
            return seen & (position_ids[batch, query] - position_ids[batch, key] < window)

        return create_block_mask(sees, batch_size, None, n_tokens, n_tokens, device=str(subtree_end.device))
    index = torch.arange(n_tokens, device=subtree_end.device)
    query, key = index[:, None], index[None, :]
    seen = (key <= query) & (query < subtree_end[:, None, :])  # [B, T, T]
    if window is not None:
        seen &= position_ids[:, :, None] - position_ids[:, None, :] < window
    mask = torch.zeros(seen.shape, dtype=dtype, device=subtree_end.device)
    return mask.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]  # [B, 1, T, T]
