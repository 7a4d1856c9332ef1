"""The whole service over real HTTP: Ray Serve, a bundle of a random tiny model, a random tiny encoder.

What the model prefers is arbitrary; that the answer over HTTP is what the same model answers in this process is not.
"""

from __future__ import annotations

import base64
import io
import json
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from ray import serve as ray_serve
from safetensors.torch import save_file

from data_pipeline.catalog import Tool, ToolCatalog
from data_pipeline.encoding import encode_question
from data_pipeline.media import load_media
from model.bundle import Bundle, load_bundle, save_bundle
from model.config import ModelConfig
from model.decode import Prompt, top_k_tools
from model.encoders import load_encoder
from model.imagebind import ImageBind, ImageBindConfig
from model.mllm import ToolLLM
from model.tiny import build_tiny_backbone
from model.trie import CatalogTrie
from serve.app import build_app
from serve.client import ServiceError, health, list_tools, select

pytestmark = [pytest.mark.ray, pytest.mark.slow]

APP = "toolmm-test"
SELECT = "/v1/tools/select"
MAX_UPLOAD_BYTES = 300_000
CATALOG = ToolCatalog(
    [
        Tool("deblur", "Sharpens a blurred picture.", "image", "image", "local"),
        Tool("dehaze", "Removes haze.", "image", "image", "local"),
        Tool("denoise-sound", "Removes noise.", "audio", "audio", "local"),
        Tool("nvidia/segformer-b0", "Segments.", "image", "image", "huggingface"),
        Tool("nvidia/segformer-b5", "Segments better.", "image", "image", "huggingface"),
        Tool("unknown", "None of them."),
    ]
)


@dataclass(frozen=True)
class _Service:
    url: str
    bundle: Bundle
    mllm: ToolLLM
    encoder_dir: Path

    def expected(self, instruction: str, modality: str | None = None, data: bytes = b"") -> dict[str, float]:
        """Tool id -> probability, by the same functions without HTTP, batches and replicas."""
        vector = None
        if modality is not None:
            encoder = load_encoder(str(self.encoder_dir))
            array = load_media(modality, data, recipe=encoder.recipe)
            vector = encoder.encode(modality, torch.from_numpy(array)[None])[0].numpy()
        question = encode_question(self.mllm.tokenizer, instruction, vector is not None, ())
        trie = CatalogTrie(CATALOG.tool_ids, self.mllm.tokenizer)
        [ranking] = top_k_tools(self.mllm, [Prompt(question.prompt_ids, vector)], len(CATALOG), trie)
        return {tool.tool_id: tool.probability for tool in ranking}

    def post(self, **kwargs: Any) -> httpx.Response:
        return httpx.post(self.url + SELECT, timeout=60, **kwargs)


def _make_encoder(folder: Path) -> Path:
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


def _make_bundle(folder: Path, backbone: Path, encoder_dir: Path) -> Path:
    texts = [f"### Human: improve this\n### Assistant: {{'api_name': {tool_id}}}\n###" for tool_id in CATALOG.tool_ids]
    build_tiny_backbone(
        backbone, texts * 3, vocab_size=320, hidden_size=32, n_layers=2, n_heads=2, intermediate_size=48
    )
    config = ModelConfig(
        backbone=str(backbone), encoder_dim=16, lora_r=2, modules_to_save=["embed_tokens", "lm_head"], seed=1
    )
    mllm = ToolLLM.build(config)
    generator = torch.Generator().manual_seed(7)
    mllm.load_trainable_state_dict(  # far from uniform, so that the medium and every word matter
        {name: torch.randn(value.shape, generator=generator) for name, value in mllm.trainable_state_dict().items()}
    )
    save_bundle(
        folder,
        mllm=mllm,
        catalog=CATALOG,
        encoder_id=load_encoder(str(encoder_dir)).encoder_id,
        encoder_name=str(encoder_dir),
        model_config=config,
        data_hash="0" * 64,
        metrics={},
        resolved_config={},
        git_revision="",
    )
    return folder


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def service(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Service]:
    folder = tmp_path_factory.mktemp("service")
    encoder_dir = _make_encoder(folder / "encoder")
    bundle = load_bundle(_make_bundle(folder / "bundle", folder / "backbone", encoder_dir))
    port = _free_port()
    ray_serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        args = {
            "bundle": str(bundle.folder),
            "max_upload_bytes": MAX_UPLOAD_BYTES,
            "max_pixels": 1_000_000,
            "max_duration_s": 5,
            "max_batch_size": 8,
            "batch_wait_timeout_s": 0.05,
            "media_cache_entries": 3,
        }
        ray_serve.run(build_app(args), name=APP)
        yield _Service(f"http://127.0.0.1:{port}", bundle, bundle.build_mllm(), encoder_dir)
    finally:
        ray_serve.shutdown()


def _picture(seed: int = 0, size: tuple[int, int] = (40, 50)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _sound(duration_s: float = 0.5) -> bytes:
    file = io.BytesIO()
    wave = (8000 * np.sin(np.arange(int(16_000 * duration_s)) / 9)).astype(np.int16)[None]
    with av.open(file, "w", format="wav") as container:
        stream = container.add_stream("pcm_s16le", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(wave, format="s16", layout="mono")
        frame.sample_rate = 16_000
        container.mux([*stream.encode(frame), *stream.encode(None)])
    return file.getvalue()


def _video() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10, width=64, height=48, pix_fmt="yuv420p")
        for i in range(25):
            pixels = np.full((48, 64, 3), 10 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return file.getvalue()


def _probabilities(response: httpx.Response) -> dict[str, float]:
    assert response.status_code == 200, response.text
    return {tool["tool_id"]: tool["probability"] for tool in response.json()["tools"]}


def _assert_error(response: httpx.Response, status: int, code: str) -> None:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["code"] == code
    for word in ("Traceback", ".py", "ray::", "/tmp", "/home", "/root", "\n"):
        assert word not in error["message"]


def test_text_question_over_json(service: _Service) -> None:
    response = service.post(json={"instruction": "improve this", "k": 6})
    assert _probabilities(response) == pytest.approx(service.expected("improve this"), abs=1e-5)
    body = response.json()
    probabilities = [tool["probability"] for tool in body["tools"]]
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1)
    assert body["modality"] == "text"
    assert body["abstained"] == (body["tools"][0]["tool_id"] == "unknown")
    assert body["p_unknown"] == pytest.approx(service.expected("improve this")["unknown"], abs=1e-5)
    assert body["bundle_revision"] == service.bundle.revision
    assert body["timing"]["total_ms"] > 0


@pytest.mark.parametrize("modality", ["image", "audio", "video"])
def test_media_over_json_and_multipart(service: _Service, modality: str) -> None:
    data = {"image": _picture, "audio": _sound, "video": _video}[modality]()
    expected = service.expected("improve this", modality, data)
    assert expected != pytest.approx(service.expected("improve this"), abs=1e-2), "the medium must matter"

    encoded = base64.b64encode(data).decode()
    over_json = service.post(json={"instruction": "improve this", "k": 6, "media": {"data": encoded}})
    assert _probabilities(over_json) == pytest.approx(expected, abs=1e-4)
    assert (over_json.json()["modality"], over_json.json()["media_cached"]) == (modality, False)

    over_form = service.post(
        data={"instruction": "improve this", "k": "6"}, files={"file": ("x.bin", data, "application/octet-stream")}
    )
    assert _probabilities(over_form) == pytest.approx(expected, abs=1e-4)
    assert (over_form.json()["modality"], over_form.json()["media_cached"]) == (modality, True)


def test_remembered_media_are_bounded(service: _Service) -> None:
    for seed in range(10, 16):
        service.post(data={"instruction": "a"}, files={"file": ("x", _picture(seed))}).raise_for_status()
    encoder = ray_serve.get_deployment_handle("MediaEncoder", APP)
    assert encoder.describe.remote().result()["vectors"] == 3


def test_concurrent_questions_share_batches_and_keep_their_answers(service: _Service) -> None:
    questions = [("improve this " + "very " * (i % 5) + "much", i % 6 + 1, i % 3) for i in range(32)]
    pictures = [_picture(100), _picture(101)]

    def ask(question: tuple[str, int, int]) -> httpx.Response:
        instruction, k, medium = question
        if medium == 2:
            return service.post(json={"instruction": instruction, "k": k})
        return service.post(data={"instruction": instruction, "k": str(k)}, files={"file": ("x", pictures[medium])})

    with ThreadPoolExecutor(16) as pool:
        responses = list(pool.map(ask, questions))
    for (instruction, k, medium), response in zip(questions, responses, strict=True):
        expected = service.expected(instruction, *(("image", pictures[medium]) if medium < 2 else ()))
        best = dict(sorted(expected.items(), key=lambda pair: -pair[1])[:k])
        assert _probabilities(response) == pytest.approx(best, abs=1e-4)
    predictor = ray_serve.get_deployment_handle("Predictor", APP)
    assert 2 <= predictor.describe.remote().result()["largest_batch"] <= 8


def test_long_words_are_cut_and_said_so(service: _Service) -> None:
    assert service.post(json={"instruction": "improve this"}).json()["instruction_cut"] is False
    assert service.post(json={"instruction": "improve this " * 300}).json()["instruction_cut"] is True


@pytest.mark.parametrize(
    ("data", "modality", "status", "code"),
    [
        (b"", None, 400, "empty_media"),
        (b"hello", None, 415, "unsupported_media"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", None, 415, "unsupported_media"),
        (_picture()[:200], None, 422, "bad_media"),
        (_picture(size=(1001, 1000))[:5000], None, 422, "bad_media"),  # too many pixels says the header
        (_video()[:2000], None, 422, "bad_media"),
        (_sound(5.1), None, 422, "bad_media"),  # too long
        (_sound(0.001), None, 422, "bad_media"),  # too short
        (_sound(), "video", 400, "modality_mismatch"),
        (_picture(), "audio", 400, "modality_mismatch"),
        (b"x" * (MAX_UPLOAD_BYTES + 1), None, 413, "media_too_large"),
        (b"x" * (3 * MAX_UPLOAD_BYTES), None, 413, "body_too_large"),
    ],
)
def test_bad_media(service: _Service, data: bytes, modality: str | None, status: int, code: str) -> None:
    fields = {"instruction": "a"} | ({"modality": modality} if modality else {})
    _assert_error(service.post(data=fields, files={"file": ("x", data)}), status, code)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({}, 400, "bad_field"),
        ({"instruction": ""}, 400, "empty_instruction"),
        ({"instruction": "a" * 4001}, 413, "instruction_too_long"),
        ({"instruction": "a", "k": 7}, 400, "bad_k"),
        ({"instruction": "a", "media": {"data": "http://127.0.0.1:8265/"}}, 400, "url_not_allowed"),
        ({"instruction": "a", "media": {"data": "***"}}, 400, "bad_base64"),
    ],
)
def test_bad_fields(service: _Service, body: dict[str, Any], status: int, code: str) -> None:
    _assert_error(service.post(json=body), status, code)


def test_bad_bodies(service: _Service) -> None:
    _assert_error(service.post(content=b"{", headers={"Content-Type": "application/json"}), 400, "bad_json")
    _assert_error(service.post(content=b"a=b"), 415, "bad_content_type")
    _assert_error(httpx.get(service.url + SELECT), 405, "bad_method")
    _assert_error(httpx.get(service.url + "/v2/tools"), 404, "not_found")


def test_chunked_body_without_a_length_is_limited(service: _Service) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(100):
            yield b"x" * 10_000

    response = service.post(content=chunks(), headers={"Content-Type": "application/json"})
    _assert_error(response, 413, "body_too_large")


def test_client_tools_and_health(service: _Service, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(_picture())
    answer = select(service.url, "improve this", tmp_path / "a.png", 2)
    assert len(answer["tools"]) == 2
    assert answer["modality"] == "image"
    assert [tool["tool_id"] for tool in list_tools(service.url)["tools"]] == list(CATALOG.tool_ids)
    assert health(service.url)["status"] == "ok"
    with pytest.raises(ServiceError, match=re.compile("the instruction is empty", re.IGNORECASE)):
        select(service.url, " ")
