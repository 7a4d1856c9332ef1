"""Pre-training of the tiny ImageBind that ships with the code.

    python -m model.imagebind.tiny_encoder --out model/weights --seed 0

The demo needs a frozen encoder that sees and hears, and no hub stands in the way. This job renders its own media with
the renderers of ToolMM-mini, from another seed stream than any corpus, and trains our ImageBind at tiny size to tell
the kinds of media apart. Each tower gets one softmax over all of its kinds on top of the unit-length embedding (cosine
logits), so that kinds become linearly separable in exactly the vector that `ImageBind.encode` returns. The classifier
is thrown away afterwards.

Most steps see a random part of the patches only (as in masked auto-encoders, He et al. 2021), which is several times
faster; the last ones see all, as inference does. Letters: B batch, N tokens, D tower width, E embedding width.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save
from scipy.fft import idctn
from torch import Tensor, nn

from data_pipeline import storage
from data_pipeline.locations import locate_local
from data_pipeline.media.load import load_media
from data_pipeline.records.schema import Modality
from data_pipeline.sources.toolmm_mini.media_files import MEDIA_KINDS, render_media, seeded_generator
from model.imagebind.layers import FrameConv, VisionPreprocessor
from model.imagebind.network import ImageBind, ImageBindConfig

logger = logging.getLogger(__name__)

TINY_CONFIG = ImageBindConfig(
    out_embed_dim=128,
    vision_embed_dim=128,
    vision_num_blocks=4,
    vision_num_heads=4,
    audio_embed_dim=96,
    audio_num_blocks=3,
    audio_num_heads=4,
    modalities=("vision", "audio"),
)
WEIGHTS_NAME = "tiny_imagebind.safetensors"
CONFIG_NAME = "tiny_imagebind.json"

LOGIT_SCALE = 16.0  # cosine logits need a factor; 16 separates some 40 classes without saturating
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.05
LABEL_SMOOTHING = 0.05


@dataclass(frozen=True)
class PretrainBudget:
    """How much is rendered and trained.

    Attributes:
        pictures, sounds, clips: media per kind.
        vision_steps, audio_steps: optimizer steps of each tower.
        batch_size: media per step.
        kept_patches: patches that a step sees, out of some 250.
        full_frac: share of the steps, at the end, that see all patches.
    """

    pictures: int = 100
    sounds: int = 60
    clips: int = 120
    vision_steps: int = 2600
    audio_steps: int = 350
    batch_size: int = 32
    kept_patches: int = 48
    full_frac: float = 0.06


@dataclass(frozen=True)
class MediaPool:
    """Rendered media of one modality.

    Attributes:
        media: float16, (n, views, ...): the views of one medium differ in crop (video) or start (audio).
        labels: int64 (n,), index into `kinds`.
        kinds: names of the classes.
    """

    media: Tensor
    labels: Tensor
    kinds: tuple[str, ...]


def render_pool(modality: Modality, per_kind: int, seed: int, stream: str = "pretraining") -> MediaPool:
    """Render `per_kind` media of every kind and load them exactly as the product does.

    Args:
        modality: image, audio or video.
        per_kind: media per kind.
        seed: of the job.
        stream: name of the seed stream; a corpus uses others, so no medium is ever shared with one.

    Returns:
        views: image (n, 1, 3, 224, 224), audio (n, 3, 1, 128, 204), video (n, 3, 3, 2, 224, 224).
    """
    media, labels = [], []
    kinds = MEDIA_KINDS[modality]
    for label, kind in enumerate(kinds):
        for index in range(per_kind):
            data = render_media(modality, kind, seeded_generator(stream, seed, kind, index))
            loaded = load_media(modality, data)
            # The views of a sound are its three clips, those of a video the three crops of its first clip.
            views = loaded[None] if modality is Modality.IMAGE else loaded[:3]
            media.append(torch.from_numpy(views.astype(np.float16)))
            labels.append(label)
        logger.info("rendered=%s count=%d", kind, per_kind)
    return MediaPool(torch.stack(media), torch.tensor(labels), kinds)


def cut_patches(media: Tensor) -> Tensor:
    """Cut pictures into the patches of the vision stem.

    Args:
        media: (n, views, 3, 224, 224) pictures or (n, views, 3, 2, 224, 224) clips.

    Returns:
        (n, views, N, 3, 1 or 2, kh, kw) contiguous, patches in row, column order.
    """
    if media.ndim == 5:
        media = media.unsqueeze(3)
    height, width = TINY_CONFIG.kernel_size[1:]
    cut = media.unflatten(-1, (-1, width)).unflatten(-3, (-1, height))  # [n,views,3,T,rows,kh,columns,kw]
    return cut.permute(0, 1, 4, 6, 2, 3, 5, 7).flatten(2, 3).contiguous()


def _vision_preprocessor(encoder: ImageBind) -> VisionPreprocessor:
    preprocessor = encoder.modality_preprocessors["vision"]
    assert isinstance(preprocessor, VisionPreprocessor)
    return preprocessor


def _stem_weight(encoder: ImageBind) -> Tensor:
    conv = _vision_preprocessor(encoder).rgbt_stem.proj[1]
    assert isinstance(conv, FrameConv)
    return conv.weight


def whiten_stem(encoder: ImageBind, rng: np.random.Generator) -> None:
    """Re-draw the vision stem in place: random filters whose gain grows with frequency.

    Pictures have an amplitude spectrum of about 1 / frequency (Field 1987), so plain random filters see brightness and
    little else, and fine structure (noise, blur, block edges) is learned late. Half of the filters add the two frames
    of a clip, the other half subtract them, so that change over time is seen from the start too.
    """
    weight = _stem_weight(encoder)  # [D,3,2,kh,kw]
    width, channels, _, height, columns = weight.shape
    frequency = np.hypot(*np.meshgrid(np.arange(height), np.arange(columns), indexing="ij"))
    spectrum = rng.standard_normal((width, channels, height, columns)) * (1 + frequency)
    filters = np.asarray(idctn(spectrum, axes=(-2, -1), norm="ortho"))
    filters /= np.linalg.norm(filters.reshape(width, -1), axis=1)[:, None, None, None]
    second = np.where(np.arange(width) % 2 == 0, 1.0, -1.0)[:, None, None, None] * filters
    with torch.no_grad():
        weight.copy_(torch.from_numpy(np.stack([filters, second], axis=2)))


def embed_vision(encoder: ImageBind, patches: Tensor, places: Tensor) -> Tensor:
    """Embed single pictures or clips of which only some patches are given.

    Args:
        encoder: the model under training.
        patches: (B, K, 3, 2, kh, kw).
        places: (K,) int64, index of each patch among all.

    Returns:
        (B, E) unit vectors; with all patches what `encode` gives for one clip.
    """
    preprocessor = _vision_preprocessor(encoder)
    positions = preprocessor.pos_embedding_helper.pos_embed
    tokens = F.linear(patches.flatten(2), _stem_weight(encoder).flatten(1))  # [B,K,D]
    first = (preprocessor.cls_token + positions[:, :1]).expand(len(patches), -1, -1)
    tokens = torch.cat([first, tokens + positions[:, 1 + places]], dim=1)  # [B,1+K,D]
    return F.normalize(encoder.modality_heads["vision"](encoder.modality_trunks["vision"](tokens)), dim=-1)


def embed_audio(encoder: ImageBind, mel: Tensor, places: Tensor) -> Tensor:
    """The same for spectrograms: mel (B, 1, 128, 204) whole, of which the patches at `places` (K,) are used."""
    tokens = encoder.modality_preprocessors["audio"](mel)  # [B,1+N,D]
    tokens = torch.cat([tokens[:, :1], tokens[:, 1 + places]], dim=1)  # [B,1+K,D]
    return F.normalize(encoder.modality_heads["audio"](encoder.modality_trunks["audio"](tokens)), dim=-1)


def draw_vision(pools: list[MediaPool], batch_size: int, places: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """A batch of pictures and clips, mirrored and reversed in time at random.

    Args:
        pools: pictures and clips; their `media` are patches.
        batch_size: of which two fifths are clips.
        places: (K,) the patches to draw.
        rng: draws.

    Returns:
        (B, K, 3, 2, kh, kw) float32 and labels (B,), the clips' kinds after the pictures'.
    """
    pictures, clips = pools
    n_clips = batch_size * 2 // 5
    rows = torch.randint(len(pictures.labels), (batch_size - n_clips,), generator=rng)
    clip_rows = torch.randint(len(clips.labels), (n_clips,), generator=rng)
    views = torch.randint(clips.media.shape[1], (n_clips,), generator=rng)
    is_mirrored, is_reversed = torch.rand(2, generator=rng) < 0.5
    side = round(pictures.media.shape[2] ** 0.5)
    taken = places + side - 1 - 2 * (places % side) if is_mirrored else places  # column c becomes side - 1 - c
    still = pictures.media[rows[:, None], 0, taken].expand(-1, -1, -1, 2, -1, -1)
    patches = torch.cat([still, clips.media[clip_rows[:, None], views[:, None], taken]]).float()
    if is_mirrored:
        patches = patches.flip(-1)
    if is_reversed:
        patches = patches.flip(3)
    return patches, torch.cat([pictures.labels[rows], clips.labels[clip_rows] + len(pictures.kinds)])


def draw_audio(pools: list[MediaPool], batch_size: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """A batch of spectrograms (B,1,128,204) with labels."""
    (sounds,) = pools
    rows = torch.randint(len(sounds.labels), (batch_size,), generator=rng)
    views = torch.randint(sounds.media.shape[1], (batch_size,), generator=rng)
    return sounds.media[rows, views].float(), sounds.labels[rows]


def train_tower(
    encoder: ImageBind, tower: str, pools: list[MediaPool], steps: int, budget: PretrainBudget, seed: int
) -> list[float]:
    """Train one tower in place.

    Args:
        encoder: holds the tower.
        tower: "vision" (pools: pictures and clips, cut into patches) or "audio" (pools: sounds).
        pools: what it learns to tell apart.
        steps: optimizer steps.
        budget: batch size and patches.
        seed: of draws and of the thrown-away classifier.

    Returns:
        the loss of every step.
    """
    rng = torch.Generator().manual_seed(seed)
    classes = sum(len(pool.kinds) for pool in pools)
    classifier = nn.Parameter(torch.randn(classes, encoder.config.out_embed_dim, generator=rng))  # [classes,E]
    modules = (encoder.modality_preprocessors[tower], encoder.modality_trunks[tower], encoder.modality_heads[tower])
    parameters = [classifier, *(p for module in modules for p in module.parameters())]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, betas=(0.9, 0.98))
    warmup = max(1, steps // 20)

    def rate(step: int) -> float:
        return min((step + 1) / warmup, 0.5 * (1 + np.cos(np.pi * step / steps)) + 0.01)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    patches = encoder.config.vision_patches if tower == "vision" else encoder.config.audio_patches
    losses, started = [], time.monotonic()
    for step in range(steps):
        is_whole = step >= steps * (1 - budget.full_frac)
        places = torch.randperm(patches, generator=rng)[: None if is_whole else budget.kept_patches]
        if tower == "vision":
            media, labels = draw_vision(pools, budget.batch_size, places, rng)
            unit = embed_vision(encoder, media, places)
        else:
            media, labels = draw_audio(pools, budget.batch_size, rng)
            unit = embed_audio(encoder, media, places)
        logits = LOGIT_SCALE * unit @ F.normalize(classifier, dim=-1).T  # [B,classes]
        loss = F.cross_entropy(logits, labels, label_smoothing=LABEL_SMOOTHING)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % 50 == 49 or step == steps - 1:
            hits = (logits.argmax(dim=-1) == labels).float().mean().item()
            logger.info(
                "tower=%s step=%d/%d loss=%.3f accuracy=%.2f elapsed_s=%.0f",
                tower, step + 1, steps, float(np.mean(losses[-50:])), hits, time.monotonic() - started,
            )  # fmt: skip
    return losses


def pretrain(seed: int, budget: PretrainBudget, config: ImageBindConfig = TINY_CONFIG) -> ImageBind:
    """Render, build and train; the same arguments give the same weights on the same machine."""
    torch.manual_seed(seed)
    encoder = ImageBind(config)
    whiten_stem(encoder, seeded_generator("stem", seed))
    sounds = render_pool(Modality.AUDIO, budget.sounds, seed)
    train_tower(encoder, "audio", [sounds], budget.audio_steps, budget, seed)
    pools = [render_pool(Modality.IMAGE, budget.pictures, seed), render_pool(Modality.VIDEO, budget.clips, seed)]
    pools = [replace(pool, media=cut_patches(pool.media)) for pool in pools]
    train_tower(encoder, "vision", pools, budget.vision_steps, budget, seed)
    return encoder


def save_encoder(encoder: ImageBind, out_dir: Path) -> None:
    """Write `WEIGHTS_NAME` (float16) and `CONFIG_NAME` into `out_dir`; each appears only when complete."""
    state = {key: value.detach().to(torch.float16).contiguous() for key, value in encoder.state_dict().items()}
    storage.write_file(out_dir / WEIGHTS_NAME, save(state))
    storage.write_file(out_dir / CONFIG_NAME, json.dumps(asdict(encoder.config), indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Pre-train the tiny ImageBind on rendered media.")
    parser.add_argument("--out", type=str, required=True, help="folder for the weights and the config")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of PyTorch")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    save_encoder(pretrain(arguments.seed, PretrainBudget()), locate_local(arguments.out))


if __name__ == "__main__":
    main()
