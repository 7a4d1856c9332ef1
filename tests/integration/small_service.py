"""A bundle of a random tiny model behind Ray Serve, and media to send to it; the serving tests share them."""

from __future__ import annotations

import io
import json
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import torch
from PIL import Image
from ray import serve as ray_serve
from safetensors.torch import save_file

from data_pipeline.batches.encoding import encode_question
from data_pipeline.media.load import load_media
from data_pipeline.records.catalog import Tool, ToolCatalog
from model.decode.tools import Prompt, calibrate, top_k_tools
from model.decode.trie import ChoiceTrie
from model.imagebind.encoders import load_encoder
from model.imagebind.network import ImageBind, ImageBindConfig
from model.llm.bundle import Bundle, load_bundle
from model.llm.config import ModelConfig
from model.llm.tool_llm import ToolLLM
from model.scoring.calibration import UNCALIBRATED, Calibration
from model.tiny.backbone import build_tiny_backbone
from model.tiny.bundle import save_tiny_bundle
from serve.app import build_app
from serve.http.schemas import ErrorAnswer

APP = "toolmm-test"
SELECT = "/v1/tools/select"
MODEL, SECOND_MODEL = "toolmm", "second-1.0"
CALIBRATIONS = {MODEL: UNCALIBRATED, SECOND_MODEL: Calibration(0.4, 1.1)}
MAX_UPLOAD_BYTES = 300_000
CATALOG = ToolCatalog(
    [
        Tool("local/detect-edges", "Marks edges.", "image", "image", "local"),
        Tool("deblur", "Sharpens a blurred picture.", "image", "image", "local"),
        Tool("dehaze", "Removes haze.", "image", "image", "local"),
        Tool("denoise-sound", "Removes noise.", "audio", "audio", "local"),
        Tool("nvidia/segformer-b0", "Segments.", "image", "image", "huggingface"),
        Tool("nvidia/segformer-b5", "Segments better.", "image", "image", "huggingface"),
        Tool("unknown", "None of them."),
    ]
)


@dataclass(frozen=True)
class Service:
    url: str
    bundle: Bundle
    mllms: dict[str, ToolLLM]
    encoder_dir: Path
    args: dict[str, Any]

    def expected(
        self,
        instruction: str,
        modality: str | None = None,
        data: bytes = b"",
        model: str = MODEL,
        any_modality: bool = False,
        tool_ids: Sequence[str] | None = None,
    ) -> dict[str, float]:
        """Tool id -> calibrated probability, by the same functions without HTTP, batches, replicas and other models."""
        mllm = self.mllms[model]
        vector = None
        if modality is not None:
            encoder = load_encoder(str(self.encoder_dir))
            array = load_media(modality, data, recipe=encoder.recipe)
            vector = encoder.encode(modality, torch.from_numpy(array)[None])[0].numpy()
        question = encode_question(mllm.tokenizer, instruction, vector is not None, ())
        if tool_ids is None:  # tools for other media are no candidates
            takes = ("", modality)
            tool_ids = [t.tool_id for t in CATALOG if modality is None or any_modality or t.input_modality in takes]
        trie = ChoiceTrie(tool_ids, mllm.tokenizer)
        if len(trie) == 1:
            return {tool_ids[0]: 1.0}
        [ranking] = top_k_tools(mllm, [Prompt(question.prompt_ids, vector)], len(trie), trie)
        return {tool.tool_id: tool.probability for tool in calibrate(ranking, CALIBRATIONS[model])}

    def post(self, **kwargs: Any) -> httpx.Response:
        return httpx.post(self.url + SELECT, timeout=60, **kwargs)


def make_encoder(folder: Path) -> Path:
    config = ImageBindConfig(
        out_embed_dim=16,
        vision_embed_dim=24,
        vision_num_blocks=1,
        vision_num_heads=2,
        audio_embed_dim=24,
        audio_num_blocks=1,
        audio_num_heads=2,
        modalities=("vision", "audio"),
    )
    torch.manual_seed(5)
    net = ImageBind(config)
    folder.mkdir()
    save_file({name: value.contiguous() for name, value in net.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(asdict(config)))
    return folder


def make_bundle(
    folder: Path,
    backbone: Path,
    encoder_dir: Path,
    seed: int = 7,
    catalog: ToolCatalog = CATALOG,
    calibration: Calibration = UNCALIBRATED,
) -> Path:
    texts = [f"### Human: improve this\n### Assistant: {{'api_name': {tool_id}}}\n###" for tool_id in CATALOG.tool_ids]
    build_tiny_backbone(
        backbone,
        texts * 3,
        vocab_size=320,
        hidden_size=32,
        n_layers=2,
        n_heads=2,
        intermediate_size=48,
        max_positions=4096,
    )
    config = ModelConfig(
        backbone=str(backbone), encoder_dim=16, lora_r=2, modules_to_save=["embed_tokens", "lm_head"], seed=1
    )
    mllm = ToolLLM.build(config)
    generator = torch.Generator().manual_seed(seed)
    mllm.load_trainable_state_dict(  # far from uniform, so that the medium and every word matter
        {name: torch.randn(value.shape, generator=generator) for name, value in mllm.trainable_state_dict().items()}
    )
    encoder_id = load_encoder(str(encoder_dir)).encoder_id
    save_tiny_bundle(folder, mllm, catalog, encoder_id, str(encoder_dir), calibration)
    return folder


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextmanager
def run_service(folder: Path) -> Iterator[Service]:
    """The service on a free port, its files below `folder`; a Ray must be there."""
    encoder_dir = make_encoder(folder / "encoder")
    bundle = load_bundle(make_bundle(folder / "bundle", folder / "backbone", encoder_dir))
    link = folder / "served"
    link.symlink_to(bundle.folder)
    calibration = CALIBRATIONS[SECOND_MODEL]
    second = load_bundle(
        make_bundle(folder / "second", folder / "backbone2", encoder_dir, seed=9, calibration=calibration)
    )
    port = free_port()
    ray_serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        args = {
            "bundle": str(link),
            "bundle_poll_s": 1,
            "adapters": {SECOND_MODEL: str(second.folder)},
            "max_upload_bytes": MAX_UPLOAD_BYTES,
            "max_pixels": 1_000_000,
            "max_duration_s": 5,
            "max_batch_size": 8,
            "batch_wait_timeout_s": 0.05,
            "media_cache_entries": 3,
            "artifacts": str(folder / "artifacts"),
        }
        ray_serve.run(build_app(args), name=APP)
        mllms = {MODEL: bundle.build_mllm(), SECOND_MODEL: second.build_mllm()}
        yield Service(f"http://127.0.0.1:{port}", bundle, mllms, encoder_dir, args)
    finally:
        ray_serve.shutdown()


def picture(seed: int = 0, size: tuple[int, int] = (40, 50)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def sound(duration_s: float = 0.5) -> bytes:
    file = io.BytesIO()
    wave = (8000 * np.sin(np.arange(int(16_000 * duration_s)) / 9)).astype(np.int16)[None]
    with av.open(file, "w", format="wav") as container:
        stream = container.add_stream("pcm_s16le", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(wave, format="s16", layout="mono")
        frame.sample_rate = 16_000
        container.mux([*stream.encode(frame), *stream.encode(None)])
    return file.getvalue()


def video(n_frames: int = 25) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10, width=64, height=48, pix_fmt="yuv420p")
        for i in range(n_frames):
            pixels = np.full((48, 64, 3), 10 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return file.getvalue()


def assert_error(response: httpx.Response, status: int, code: str) -> None:
    assert response.status_code == status, response.text
    assert assert_error_form(response) == code


def assert_error_form(response: Any) -> str:
    """One sentence in OpenAI's form that tells nothing of the machine; returns its code."""
    error = ErrorAnswer.model_validate_json(response.content).error
    for word in ("Traceback", ".py", "ray::", "/tmp", "/home", "/root", "\n"):
        assert word not in error.message
    return error.code
