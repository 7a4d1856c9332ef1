"""How much of the bare encoder's speed is left when `embed` reads, decodes, encodes and writes.

The peer runs in the same session with the same weights, batch size and threads, on tensors that lie ready in memory;
half of it before and half after the pass, so that a machine that gets slower or faster meanwhile favours neither.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import ray

from data_pipeline.corpus.build import Corpus, PrepareOptions, build_corpus
from data_pipeline.media.load import load_media
from data_pipeline.records.schema import Modality
from ray_jobs.embed.job import embed_corpus

IMAGE_SIDE_PX = 640
WIDTH, BLOCKS, HEADS, EMBED_DIM = 384, 12, 6, 384


def run(
    n_images: int = 400, batch_size: int = 16, threads: int = 2, n_peer_batches: int = 12, num_gpus: float = 0
) -> dict[str, Any]:
    """Measure images per second of `embed` after its first batch and of the bare forward.

    Args:
        n_images: JPEGs of `IMAGE_SIDE_PX` squared, all different.
        batch_size: images per forward, in both.
        threads: torch threads, in both.
        n_peer_batches: forward passes of the peer, half before and half after.
        num_gpus: 0 = CPU.

    Returns:
        embed_images_per_s, forward_images_per_s, ratio, and what was run.
    """
    with tempfile.TemporaryDirectory(prefix="bench_embed_") as folder:
        root = Path(folder)
        corpus = _build_images_corpus(root, n_images)
        encoder_dir = _save_encoder(root / "encoder")
        batch = np.stack(
            [load_media(Modality.IMAGE, root / "images" / f"{i:04d}.jpg") for i in range(batch_size)]
        )  # (B, 3, 224, 224)
        peer = (
            ray.remote(_BareForward)
            .options(num_cpus=1, num_gpus=num_gpus)
            .remote(str(encoder_dir), batch, threads, num_gpus > 0)
        )
        times_s = ray.get(peer.time_batches.remote(n_peer_batches // 2))
        result = embed_corpus(
            corpus,
            root / "lake",
            str(encoder_dir),
            batch_size=batch_size,
            threads_per_actor=threads,
            num_gpus=num_gpus,
        )
        times_s += ray.get(peer.time_batches.remote(n_peer_batches - n_peer_batches // 2))
        del peer  # ends the actor
    forward = batch_size * len(times_s) / sum(times_s)
    embed = result["media_per_s_after_first_batch"]
    print(f"{'':32}{'images/s':>10}")
    print(f"{'bare forward, tensors in memory':32}{forward:>10.2f}")
    print(f"{'embed, after its first batch':32}{embed:>10.2f}")
    print(f"{'embed / bare forward':32}{embed / forward:>10.3f}")
    return {
        "embed_images_per_s": embed,
        "forward_images_per_s": forward,
        "ratio": embed / forward,
        "images": result["encoded"],
        "batch_size": batch_size,
        "threads": threads,
        "forward_batch_s": times_s,
        "decode_s": result["decode_s"],
        "encode_s": result["encode_s"],
        "write_s": result["write_s"],
    }


class _BareForward:
    """The peer: the encoder alone, in a process of its own."""

    def __init__(self, encoder_dir: str, batch: np.ndarray, threads: int, use_gpu: bool) -> None:
        import torch

        from model.imagebind.encoders import load_encoder

        if not use_gpu:
            torch.set_num_threads(threads)
        self._device = "cuda" if use_gpu else "cpu"
        dtype = torch.bfloat16 if use_gpu else torch.float32  # as `embed` does
        self._encoder = load_encoder(encoder_dir, device=self._device, dtype=dtype)
        self._batch = torch.tensor(batch).to(self._device)  # (B, 3, 224, 224)
        self.time_batches(1)  # warm-up

    def time_batches(self, n: int) -> list[float]:
        """Seconds of each of n forward passes, the result fetched to the CPU."""
        import torch

        times_s = []
        with torch.inference_mode():
            for _ in range(n):
                started_s = time.perf_counter()
                self._encoder.encode("image", self._batch).cpu()
                times_s.append(time.perf_counter() - started_s)
        return times_s


def _build_images_corpus(root: Path, n_images: int) -> Corpus:
    from PIL import Image

    (root / "images").mkdir()
    rng = np.random.default_rng(0)
    with (root / "records.jsonl").open("w", encoding="utf-8") as file:
        for number in range(n_images):
            # coarse structure plus fine grain compresses like a photograph: 100 to 200 KB
            coarse = Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8))
            pixels = np.asarray(coarse.resize((IMAGE_SIDE_PX, IMAGE_SIDE_PX), Image.Resampling.BICUBIC), np.int16)
            grain = rng.integers(-12, 13, (IMAGE_SIDE_PX, IMAGE_SIDE_PX, 1), dtype=np.int16)
            image = Image.fromarray(np.clip(pixels + grain, 0, 255).astype(np.uint8))
            image.save(root / "images" / f"{number:04d}.jpg", quality=85)
            record = {"instruction": "What is this?", "media": f"images/{number:04d}.jpg", "tools": ["look"]}
            file.write(json.dumps(record) + "\n")
    (root / "catalog.txt").write_text("look\n", encoding="utf-8")
    options = PrepareOptions.model_validate({"source": "jsonl", "path": root / "records.jsonl"})
    return Corpus.open(build_corpus(options, root / "corpus").path)


def _save_encoder(folder: Path) -> Path:
    """A small ImageBind vision tower with random weights, as a folder that `load_encoder` takes."""
    import torch
    from safetensors.torch import save_file

    from model.imagebind.network import ImageBind, ImageBindConfig

    config = ImageBindConfig(
        out_embed_dim=EMBED_DIM,
        vision_embed_dim=WIDTH,
        vision_num_blocks=BLOCKS,
        vision_num_heads=HEADS,
        modalities=("vision",),
    )
    torch.manual_seed(0)
    folder.mkdir()
    save_file(
        {name: value.contiguous() for name, value in ImageBind(config).state_dict().items()},
        folder / "model.safetensors",
    )
    (folder / "config.json").write_text(json.dumps(asdict(config)), encoding="utf-8")
    return folder
