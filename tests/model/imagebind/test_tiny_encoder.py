"""The tiny ImageBind: its pre-training job at toy size, and what the shipped weights see and hear."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_pipeline.records.schema import Modality
from data_pipeline.sources.toolmm_mini.media_files import MEDIA_KINDS
from data_pipeline.sources.toolmm_mini.questions import load_grammar
from model.imagebind.encoders import WEIGHTS_DIR, load_encoder
from model.imagebind.network import ImageBind, ImageBindConfig
from model.imagebind.tiny_encoder import (
    CONFIG_NAME,
    TINY_CONFIG,
    WEIGHTS_NAME,
    MediaPool,
    PretrainBudget,
    cut_patches,
    embed_audio,
    embed_vision,
    pretrain,
    render_pool,
    save_encoder,
    train_tower,
)

TOY_CONFIG = ImageBindConfig(
    out_embed_dim=8, vision_embed_dim=8, vision_num_blocks=1, vision_num_heads=1,
    audio_embed_dim=8, audio_num_blocks=1, audio_num_heads=1, modalities=("vision", "audio"),
)  # fmt: skip
TOY_BUDGET = PretrainBudget(
    pictures=1, sounds=1, clips=1, vision_steps=2, audio_steps=2, batch_size=4, kept_patches=8, full_frac=0.5
)


@pytest.fixture
def few_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    few = {
        Modality.IMAGE: ("pose", "street"),
        Modality.AUDIO: ("birdsong", "heartbeat"),
        Modality.VIDEO: ("still", "flicker"),
    }
    for modality, kinds in few.items():
        monkeypatch.setitem(MEDIA_KINDS, modality, kinds)


@pytest.mark.usefixtures("few_kinds")
def test_the_job_is_deterministic_and_its_files_load(tmp_path: Path) -> None:
    digests = []
    for name in ("first", "second"):
        save_encoder(pretrain(3, TOY_BUDGET, TOY_CONFIG), tmp_path / name)
        digests.append(hashlib.sha256((tmp_path / name / WEIGHTS_NAME).read_bytes()).hexdigest())
    assert digests[0] == digests[1]
    (tmp_path / "first" / WEIGHTS_NAME).rename(tmp_path / "first" / "model.safetensors")
    (tmp_path / "first" / CONFIG_NAME).rename(tmp_path / "first" / "config.json")
    encoder = load_encoder(str(tmp_path / "first"))
    assert encoder.embed_dim == 8
    assert {p.name for p in (tmp_path / "second").iterdir()} == {WEIGHTS_NAME, CONFIG_NAME}


@pytest.mark.usefixtures("few_kinds")
def test_training_lowers_the_loss() -> None:
    torch.manual_seed(0)
    encoder = ImageBind(TOY_CONFIG)
    budget = replace(TOY_BUDGET, batch_size=8, kept_patches=40)
    losses = train_tower(encoder, "audio", [render_pool(Modality.AUDIO, 2, seed=0)], 40, budget, seed=0)
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


def test_embedding_from_all_patches_is_what_encode_gives() -> None:
    """Training and inference see the same network: whole picture, clip and sound, patches in any order."""
    torch.manual_seed(0)
    encoder = ImageBind(TINY_CONFIG)
    picture, clip = torch.randn(2, 1, 3, 224, 224), torch.randn(2, 1, 3, 2, 224, 224)
    mel = torch.randn(2, 1, 1, 128, 204)
    order = torch.randperm(TINY_CONFIG.vision_patches)
    with torch.no_grad():
        still = cut_patches(picture)[:, 0, order].expand(-1, -1, -1, 2, -1, -1)
        assert torch.allclose(embed_vision(encoder, still, order), encoder.encode("image", picture[:, 0]), atol=1e-5)
        moving = cut_patches(clip)[:, 0, order]
        assert torch.allclose(embed_vision(encoder, moving, order), encoder.encode("video", clip), atol=1e-5)
        places = torch.randperm(TINY_CONFIG.audio_patches)
        assert torch.allclose(embed_audio(encoder, mel[:, 0], places), encoder.encode("audio", mel), atol=1e-5)


def test_the_shipped_weights_are_small_and_half_precision() -> None:
    assert (WEIGHTS_DIR / WEIGHTS_NAME).stat().st_size <= 4 * 2**20
    encoder = load_encoder("tiny_imagebind")
    assert encoder.net.config == TINY_CONFIG
    assert sum(p.numel() for p in encoder.net.parameters()) <= 2_000_000


def _embed(modality: Modality, pool: MediaPool) -> Tensor:
    encoder = load_encoder("tiny_imagebind")
    media = pool.media[:, 0] if modality is Modality.IMAGE else pool.media
    return torch.cat([encoder.encode(modality.value, x.float()) for x in media.split(16)])


def _probe(train: Tensor, labels: Tensor, test: Tensor, classes: int) -> Tensor:
    """Classes of `test` by logistic regression."""
    probe = nn.Linear(train.shape[1], classes)
    nn.init.zeros_(probe.weight)
    optimizer = torch.optim.LBFGS(probe.parameters(), max_iter=100)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(probe(train), labels) + 1e-4 * probe.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return probe(test).argmax(dim=1)


@pytest.mark.slow
@pytest.mark.parametrize(("modality", "per_kind"), [(Modality.IMAGE, 4), (Modality.AUDIO, 4), (Modality.VIDEO, 10)])
def test_a_linear_probe_on_fresh_media_tells_the_kinds_apart(modality: Modality, per_kind: int) -> None:
    # Clips are of ten kinds only: four of each would make a test of forty, where one clip is 2.5 %.
    train, test = (render_pool(modality, per_kind, seed=0, stream=stream) for stream in ("probe train", "probe test"))
    classes = len(train.kinds)
    found = _probe(_embed(modality, train), train.labels, _embed(modality, test), classes)
    assert (found == test.labels).float().mean() > 0.9


def test_a_linear_probe_hears_the_languages(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fast form of the test above: one family of four kinds."""
    family = next(f for f in load_grammar().families if f.name == "audio_transcribe")
    monkeypatch.setitem(MEDIA_KINDS, Modality.AUDIO, tuple(family.tools))
    train, test = (render_pool(Modality.AUDIO, 5, seed=1, stream=stream) for stream in ("probe train", "probe test"))
    found = _probe(_embed(Modality.AUDIO, train), train.labels, _embed(Modality.AUDIO, test), len(family.tools))
    assert (found == test.labels).float().mean() > 0.9
