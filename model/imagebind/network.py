"""ImageBind in plain PyTorch: image, video, audio and text into one embedding space.

Source: ImageBind (Girdhar et al., 2023), facebookresearch/ImageBind, and MLLM-Tool's copy of it. Parameter names are
the reference's, so official checkpoints load. Depth, thermal and IMU towers are not built.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_pipeline.errors import InputError
from model.imagebind.layers import (
    TEXT_CONTEXT,
    AudioPreprocessor,
    ClassTokenHead,
    EndOfTextHead,
    LogitScale,
    TextPreprocessor,
    Trunk,
    VisionPreprocessor,
)

IMAGE_SIDE_PX = 224
TOWERS = ("vision", "audio", "text")
REFERENCE_TOWERS = (*TOWERS, "depth", "thermal", "imu")
TOWER_OF = {"image": "vision", "video": "vision", "audio": "audio", "text": "text"}


@dataclass(frozen=True)
class ImageBindConfig:
    """Sizes of the towers, named as in the reference constructor; the defaults are imagebind_huge.

    Attributes:
        video_frames: frames per clip.
        kernel_size: patch of the vision stem (time, height, width), which is its stride too.
        audio_kernel_size, audio_stride: patch and step of the audio stem, in bins and frames.
        out_embed_dim: width of the joint embedding.
        audio_num_mel_bins, audio_target_len: shape of a spectrogram.
        audio_drop_path: read and unused: the encoder is always in evaluation mode.
        audio_logit_scale: multiply audio embeddings by ImageBind's 20; MLLM-Tool leaves them at unit length.
        modalities: the towers that are built, out of "vision", "audio", "text".
        depth_*, thermal_*, imu_*: accepted so that reference arguments can be passed whole, and unused.
    """

    video_frames: int = 2
    kernel_size: tuple[int, int, int] = (2, 14, 14)
    audio_kernel_size: int = 16
    audio_stride: int = 10
    out_embed_dim: int = 1024
    vision_embed_dim: int = 1280
    vision_num_blocks: int = 32
    vision_num_heads: int = 16
    audio_embed_dim: int = 768
    audio_num_blocks: int = 12
    audio_num_heads: int = 12
    audio_num_mel_bins: int = 128
    audio_target_len: int = 204
    audio_drop_path: float = 0.1
    text_embed_dim: int = 1024
    text_num_blocks: int = 24
    text_num_heads: int = 16
    depth_embed_dim: int = 384
    depth_kernel_size: int = 16
    depth_num_blocks: int = 12
    depth_num_heads: int = 8
    thermal_embed_dim: int = 768
    thermal_kernel_size: int = 16
    thermal_num_blocks: int = 12
    thermal_num_heads: int = 12
    imu_embed_dim: int = 512
    imu_kernel_size: int = 8
    imu_num_blocks: int = 6
    imu_num_heads: int = 8
    imu_drop_path: float = 0.7
    audio_logit_scale: bool = False
    modalities: tuple[str, ...] = TOWERS

    def __post_init__(self) -> None:
        # JSON has lists where we want tuples.
        object.__setattr__(self, "kernel_size", tuple(self.kernel_size))
        object.__setattr__(self, "modalities", tuple(self.modalities))
        unknown = [name for name in self.modalities if name not in TOWERS]
        if unknown or not self.modalities:
            raise InputError(
                f"ImageBindConfig.modalities is {list(self.modalities)}; give one or more of {list(TOWERS)}."
            )
        time, height, width = self.kernel_size
        if self.video_frames % time or IMAGE_SIDE_PX % height or IMAGE_SIDE_PX % width:
            raise InputError(
                f"ImageBindConfig.kernel_size {self.kernel_size} does not divide {self.video_frames} frames of "
                f"{IMAGE_SIDE_PX} x {IMAGE_SIDE_PX} pixels; choose one that does, such as (2, 14, 14)."
            )
        for tower in self.modalities:
            tower_width, heads = getattr(self, f"{tower}_embed_dim"), getattr(self, f"{tower}_num_heads")
            if tower_width % heads:
                raise InputError(
                    f"ImageBindConfig.{tower}_embed_dim {tower_width} is not a multiple of {tower}_num_heads {heads}."
                )

    @property
    def vision_patches(self) -> int:
        time, height, width = self.kernel_size
        return (self.video_frames // time) * (IMAGE_SIDE_PX // height) * (IMAGE_SIDE_PX // width)

    @property
    def audio_patches(self) -> int:
        rows = (self.audio_num_mel_bins - self.audio_kernel_size) // self.audio_stride + 1
        columns = (self.audio_target_len - self.audio_kernel_size) // self.audio_stride + 1
        return rows * columns


class ImageBind(nn.Module):
    """The encoder. It has no dropout and stays in evaluation mode; gradients flow unless the caller stops them.

    Args:
        config: sizes and towers. Weights are random until `load_reference_state_dict`; build under
            `torch.device("meta")` to spare that work where a checkpoint follows.
    """

    def __init__(self, config: ImageBindConfig) -> None:
        super().__init__()
        self.config = config
        self.modality_preprocessors = nn.ModuleDict()
        self.modality_trunks = nn.ModuleDict()
        self.modality_heads = nn.ModuleDict()
        self.modality_postprocessors = nn.ModuleDict()
        for tower in config.modalities:
            self._build_tower(tower)
        self.eval()

    def _build_tower(self, tower: str) -> None:
        config = self.config
        width: int = getattr(config, f"{tower}_embed_dim")
        blocks, heads = getattr(config, f"{tower}_num_blocks"), getattr(config, f"{tower}_num_heads")
        self.modality_trunks[tower] = Trunk(
            width, blocks, heads, has_pre_norm=tower == "vision", has_bias_kv=tower == "audio"
        )
        if tower == "text":
            self.modality_preprocessors[tower] = TextPreprocessor(width)
            self.modality_heads[tower] = EndOfTextHead(width, config.out_embed_dim)
            scale = LogitScale(math.log(1 / 0.07), is_learned=True)
        else:
            self.modality_heads[tower] = ClassTokenHead(width, config.out_embed_dim)
            scale = LogitScale(math.log(20.0), is_learned=False)
        if tower == "vision":
            self.modality_preprocessors[tower] = VisionPreprocessor(config.kernel_size, config.vision_patches, width)
            return  # vision has no scale
        if tower == "audio":
            self.modality_preprocessors[tower] = AudioPreprocessor(
                config.audio_kernel_size, config.audio_stride, config.audio_patches, width
            )
        # Identity holds the place of the reference's normalisation, which `encode` does.
        self.modality_postprocessors[tower] = nn.Sequential(nn.Identity(), scale)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def train(self, mode: bool = True) -> ImageBind:
        """Stay in evaluation mode whatever `mode` says.

        MLLM-Tool's loop puts its encoder back into training mode at every step, so it caches embeddings made with drop
        path active.
        """
        return super().train(False)

    def forward(self, modality: str, x: Tensor) -> Tensor:
        """Same as `encode`."""
        return self.encode(modality, x)

    def encode(self, modality: str, x: Tensor) -> Tensor:
        """Embed a batch.

        Args:
            modality: "image", "video", "audio" or "text".
            x: image (B,3,224,224), video (B,clips,3,2,224,224), audio (B,clips,1,128,204), text (B,77) int64 ids.

        Returns:
            (B, E) float32. Every clip is normalised to unit length (text, and audio with `audio_logit_scale`, times its
            scale); the mean over clips is not normalised again.

        Raises:
            InputError: an unknown modality, a tower that was not built, or a wrong shape.
        """
        tower = self._check(modality, x)
        clips = 1
        if modality in ("video", "audio"):
            clips = x.shape[1]
            x = x.flatten(0, 1)  # [B*clips,...]
        if tower == "text":
            preprocessor = self.modality_preprocessors[tower]
            tokens = self.modality_trunks[tower](preprocessor(x), preprocessor.mask)
            pooled = self.modality_heads[tower](tokens, x)
        else:
            tokens = self.modality_trunks[tower](self.modality_preprocessors[tower](x.to(self.dtype)))
            pooled = self.modality_heads[tower](tokens)  # [B*clips,E]
        unit = F.normalize(pooled.float(), dim=-1)
        if tower == "text" or (tower == "audio" and self.config.audio_logit_scale):
            unit = self.modality_postprocessors[tower](unit)
        return unit.unflatten(0, (-1, clips)).mean(dim=1) if clips > 1 else unit  # [B,E]

    def _check(self, modality: str, x: Tensor) -> str:
        """Name the tower of `modality`, or say what is wrong with the call."""
        tower = TOWER_OF.get(modality)
        if tower is None:
            raise InputError(f"unknown modality {modality!r}; ImageBind takes one of {list(TOWER_OF)}.")
        if tower not in self.config.modalities:
            raise InputError(
                f"this ImageBind was built without its {tower} tower (modalities={list(self.config.modalities)}), "
                f"which {modality!r} needs."
            )
        config = self.config
        expected = {
            "image": (3, IMAGE_SIDE_PX, IMAGE_SIDE_PX),
            "video": (3, config.video_frames, IMAGE_SIDE_PX, IMAGE_SIDE_PX),
            "audio": (1, config.audio_num_mel_bins, config.audio_target_len),
            "text": (TEXT_CONTEXT,),
        }[modality]
        lead = 2 if modality in ("video", "audio") else 1
        if x.ndim != lead + len(expected) or tuple(x.shape[lead:]) != expected or x.shape[lead - 1] == 0:
            axes = "B, clips" if lead == 2 else "B"
            raise InputError(
                f"{modality} input has shape {tuple(x.shape)}; expected ({axes}, {', '.join(map(str, expected))})."
            )
        return tower

    def load_reference_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load a state dict with the official names.

        Keys of towers that this model does not have are skipped. Works on a model built on the meta device too; the
        weights then keep the dtype of `state`.

        Raises:
            InputError: any other unexpected key, a missing key or a wrong shape; the message names it.
        """
        own = self.state_dict()
        skipped = tuple(
            f"modality_{part}.{tower}."
            for part in ("preprocessors", "trunks", "heads", "postprocessors")
            for tower in REFERENCE_TOWERS
            if tower not in self.config.modalities
        )
        used = {key: value for key, value in state.items() if not key.startswith(skipped)}
        problems = [("unexpected", sorted(used.keys() - own.keys())), ("missing", sorted(own.keys() - used.keys()))]
        problems.append(
            (
                "wrongly shaped",
                [
                    f"{key} {tuple(used[key].shape)} instead of {tuple(own[key].shape)}"
                    for key in own
                    if key in used and used[key].shape != own[key].shape
                ],
            )
        )
        found = [f"{kind}: {_shorten(keys)}" for kind, keys in problems if keys]
        if found:
            raise InputError(
                f"the ImageBind weights do not fit this configuration; {'; '.join(found)}. "
                "Give the checkpoint and the config that belong together."
            )
        is_meta = any(value.is_meta for value in own.values())
        self.load_state_dict(used, strict=True, assign=is_meta)


def _shorten(keys: list[str], limit: int = 5) -> str:
    shown = ", ".join(keys[:limit])
    return shown if len(keys) <= limit else f"{shown} and {len(keys) - limit} more"
