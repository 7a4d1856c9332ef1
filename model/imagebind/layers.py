"""Layers of ImageBind: attention, transformer trunk, stems and heads, under the reference's parameter names.

Source: ImageBind (Girdhar et al., 2023), facebookresearch/ImageBind `models/transformer.py` and
`models/multimodal_preprocessors.py`. Everything is batch first. Shape letters: B batch (clips flattened into it),
N tokens, D width of the tower, H heads, E width of the joint embedding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCK_NORM_EPS = 1e-6  # trunk and heads; the stems' own LayerNorm keeps torch's default 1e-5
MAX_LOGIT_SCALE = 100.0
TEXT_VOCAB_SIZE = 49408
TEXT_CONTEXT = 77


class Attention(nn.Module):
    """Self-attention with the parameter names of `torch.nn.MultiheadAttention`, computed by SDPA.

    With `has_bias_kv` one learned key and value join the sequence after the in-projection.
    """

    def __init__(self, width: int, heads: int, has_bias_kv: bool) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.bias_k = nn.Parameter(torch.empty(1, 1, width)) if has_bias_kv else None
        self.bias_v = nn.Parameter(torch.empty(1, 1, width)) if has_bias_kv else None
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        for bias in (self.bias_k, self.bias_v):
            if bias is not None:
                nn.init.xavier_normal_(bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [B,N,D], mask [N,N] additive or None -> [B,N,D]."""
        batch, _, width = x.shape
        query, key, value = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)  # each [B,N,D]
        if self.bias_k is not None and self.bias_v is not None:
            key = torch.cat([key, self.bias_k.expand(batch, 1, width)], dim=1)  # [B,N+1,D]
            value = torch.cat([value, self.bias_v.expand(batch, 1, width)], dim=1)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (query, key, value))
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)  # [B,H,N,D/H]
        return self.out_proj(attended.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers around an exact (erf) GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """x [B,N,D] -> [B,N,D]."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block. The reference's drop path is absent: it acts in training mode only."""

    def __init__(self, width: int, heads: int, has_bias_kv: bool) -> None:
        super().__init__()
        self.attn = Attention(width, heads, has_bias_kv)
        self.norm_1 = nn.LayerNorm(width, eps=BLOCK_NORM_EPS)
        self.mlp = Mlp(width)
        self.norm_2 = nn.LayerNorm(width, eps=BLOCK_NORM_EPS)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [B,N,D] -> [B,N,D]."""
        x = x + self.attn(self.norm_1(x), mask)
        return x + self.mlp(self.norm_2(x))


class Trunk(nn.Module):
    """The transformer of one modality; only vision has a LayerNorm before its blocks."""

    def __init__(self, width: int, blocks: int, heads: int, *, has_pre_norm: bool, has_bias_kv: bool) -> None:
        super().__init__()
        self.pre_transformer_layer = nn.Sequential(*([nn.LayerNorm(width, eps=BLOCK_NORM_EPS)] if has_pre_norm else []))
        self.blocks = nn.ModuleList(Block(width, heads, has_bias_kv) for _ in range(blocks))

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """tokens [B,N,D] -> [B,N,D]."""
        tokens = self.pre_transformer_layer(tokens)
        for block in self.blocks:
            tokens = block(tokens, mask)
        return tokens


class PositionTable(nn.Module):
    """Learned positions, one for the class token and one for each patch."""

    def __init__(self, patches: int, width: int) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.empty(1, patches + 1, width))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)


class PatchTokens(nn.Module):
    """Adds class token and positions to the patches that a stem makes."""

    def __init__(self, patches: int, width: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embedding_helper = PositionTable(patches, width)
        nn.init.normal_(self.cls_token, std=width**-0.5)

    def add_class_and_positions(self, patches: Tensor) -> Tensor:
        """patches [B,N,D] -> tokens [B,1+N,D], class token first."""
        class_token = self.cls_token.expand(patches.shape[0], -1, -1)
        return torch.cat([class_token, patches], dim=1) + self.pos_embedding_helper.pos_embed


class FrameConv(nn.Conv3d):
    """A Conv3d whose stride is its kernel, computed as one matrix product over cut-out patches.

    The product is the same sum; it spares the slow 3-D convolution kernels of some devices and dtypes.
    """

    def forward(self, input: Tensor) -> Tensor:
        """input [B,3,T,H,W] -> [B,N,D], patches in time, row, column order."""
        batch, channels, time, height, width = input.shape
        kt, kh, kw = self.kernel_size
        cut = input.reshape(batch, channels, time // kt, kt, height // kh, kh, width // kw, kw)
        cut = cut.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(1, 3)  # [B,N,3*kt*kh*kw]
        return F.linear(cut, self.weight.flatten(1))


class VisionStem(nn.Module):
    """Patches of frame pairs; a single frame is doubled."""

    def __init__(self, kernel_size: tuple[int, int, int], width: int) -> None:
        super().__init__()
        conv = FrameConv(3, width, kernel_size, stride=kernel_size, bias=False)
        self.proj = nn.Sequential(nn.Identity(), conv)  # Identity holds the place of the reference's padding layer

    def forward(self, frames: Tensor) -> Tensor:
        """frames [B,3,T,H,W] with T 1 or 2 -> [B,N,D]."""
        if frames.shape[2] == 1:
            frames = frames.expand(-1, -1, 2, -1, -1)
        return self.proj(frames)


class VisionPreprocessor(PatchTokens):
    """Frames to tokens."""

    def __init__(self, kernel_size: tuple[int, int, int], patches: int, width: int) -> None:
        super().__init__(patches, width)
        self.rgbt_stem = VisionStem(kernel_size, width)

    def forward(self, frames: Tensor) -> Tensor:
        """frames [B,3,H,W] or [B,3,T,H,W] -> tokens [B,1+N,D]."""
        if frames.ndim == 4:
            frames = frames.unsqueeze(2)  # [B,3,1,H,W]
        return self.add_class_and_positions(self.rgbt_stem(frames))


class AudioStem(nn.Module):
    """Overlapping patches of the spectrogram, then a LayerNorm over channels."""

    def __init__(self, kernel: int, stride: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(1, width, kernel, stride=stride, bias=False)
        self.norm_layer = nn.LayerNorm(width)  # eps 1e-5, unlike all other norms

    def forward(self, mel: Tensor) -> Tensor:
        """mel [B,1,bins,frames] -> [B,N,D]."""
        return self.norm_layer(self.proj(mel).flatten(2).transpose(1, 2))


class AudioPreprocessor(PatchTokens):
    """Log-mel spectrogram to tokens. The stem is called rgbt for audio too in the reference."""

    def __init__(self, kernel: int, stride: int, patches: int, width: int) -> None:
        super().__init__(patches, width)
        self.rgbt_stem = AudioStem(kernel, stride, width)

    def forward(self, mel: Tensor) -> Tensor:
        """mel [B,1,bins,frames] -> tokens [B,1+N,D]."""
        return self.add_class_and_positions(self.rgbt_stem(mel))


class TextPreprocessor(nn.Module):
    """Token ids to embeddings, with the causal mask of the text trunk as a buffer."""

    mask: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.empty(1, TEXT_CONTEXT, width))
        self.token_embedding = nn.Embedding(TEXT_VOCAB_SIZE, width)
        mask = torch.full((TEXT_CONTEXT, TEXT_CONTEXT), float("-inf")).triu(1)
        self.register_buffer("mask", mask)
        nn.init.normal_(self.pos_embed, std=0.01)
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        """ids [B,77] int64 -> tokens [B,77,D]."""
        return self.token_embedding(ids) + self.pos_embed


class ClassTokenHead(nn.Sequential):
    """LayerNorm and linear map of the class token; index 1 is the reference's token selection."""

    def __init__(self, width: int, out_width: int) -> None:
        norm = nn.LayerNorm(width, eps=BLOCK_NORM_EPS)
        super().__init__(norm, nn.Identity(), nn.Linear(width, out_width, bias=False))

    def forward(self, input: Tensor) -> Tensor:
        """input [B,N,D] -> [B,E]. The norm acts per token, so selecting first gives the same."""
        return super().forward(input[:, 0])


class EndOfTextHead(nn.Module):
    """The same map at the position of the largest token id, which is the end of the text."""

    def __init__(self, width: int, out_width: int) -> None:
        super().__init__()
        norm = nn.LayerNorm(width, eps=BLOCK_NORM_EPS)
        self.proj = nn.Sequential(norm, nn.Linear(width, out_width, bias=False))

    def forward(self, tokens: Tensor, ids: Tensor) -> Tensor:
        """tokens [B,77,D], ids [B,77] -> [B,E]."""
        rows = torch.arange(tokens.shape[0], device=tokens.device)
        return self.proj(tokens[rows, ids.argmax(dim=-1)])


class LogitScale(nn.Module):
    """Factor exp(log_logit_scale), at most 100; learned for text, fixed for audio."""

    log_logit_scale: Tensor

    def __init__(self, log_scale: float, is_learned: bool) -> None:
        super().__init__()
        value = torch.tensor(log_scale)
        if is_learned:
            self.log_logit_scale = nn.Parameter(value)
        else:
            self.register_buffer("log_logit_scale", value)

    def forward(self, x: Tensor) -> Tensor:
        """x [B,E] float32 -> [B,E]."""
        return x * self.log_logit_scale.float().exp().clamp(max=MAX_LOGIT_SCALE)
