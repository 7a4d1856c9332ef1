"""The whole service over real HTTP: Ray Serve, a bundle of a random tiny model, a random tiny encoder.

What the model prefers is arbitrary; that the answer over HTTP is what the same model answers in this process is not.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from ray import serve as ray_serve
from small_service import (
    APP,
    CALIBRATIONS,
    CATALOG,
    MAX_UPLOAD_BYTES,
    MODEL,
    SECOND_MODEL,
    SELECT,
    Service,
    assert_error,
    picture,
    sound,
    video,
)

from model.scoring.calibration import UNCALIBRATED
from serve.client import ServiceError, health, list_tools, select

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def _probabilities(response: httpx.Response) -> dict[str, float]:
    assert response.status_code == 200, response.text
    return {tool["tool_id"]: tool["probability"] for tool in response.json()["tools"]}


def test_text_question_over_json(service: Service) -> None:
    response = service.post(json={"instruction": "improve this", "k": 7})
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


def test_models_over_one_backbone_answer_side_by_side(service: Service) -> None:
    """Sixteen questions at once, to either model: each answers as it does alone."""
    expected = {model: service.expected("improve this", model=model) for model in service.mllms}
    assert expected[MODEL] != pytest.approx(expected[SECOND_MODEL], abs=1e-2)

    def ask(model: str) -> httpx.Response:
        return service.post(json={"instruction": "improve this", "k": 7, "model": model})

    asked = [MODEL, SECOND_MODEL] * 8
    with ThreadPoolExecutor(len(asked)) as threads:
        for model, response in zip(asked, threads.map(ask, asked), strict=True):
            assert _probabilities(response) == pytest.approx(expected[model], abs=1e-5)
            assert response.json()["model"] == model
    assert_error(ask("third"), 404, "model_not_found")


@pytest.mark.parametrize("modality", ["image", "audio", "video"])
def test_media_over_json_and_multipart(service: Service, modality: str) -> None:
    # media that no other test sends: the service, which they share, remembers them
    makers = {"image": lambda: picture(seed=77), "audio": lambda: sound(0.7), "video": lambda: video(n_frames=21)}
    data = makers[modality]()
    expected = service.expected("improve this", modality, data, any_modality=True)
    assert expected != pytest.approx(service.expected("improve this"), abs=1e-2), "the medium must matter"

    encoded = base64.b64encode(data).decode()
    question = {"instruction": "improve this", "k": 7, "media": {"data": encoded}}
    over_json = service.post(json=question | {"any_modality": True})
    assert _probabilities(over_json) == pytest.approx(expected, abs=1e-4)
    assert (over_json.json()["modality"], over_json.json()["media_cached"]) == (modality, False)

    over_form = service.post(
        data={"instruction": "improve this", "k": "7", "any_modality": "true"},
        files={"file": ("x.bin", data, "application/octet-stream")},
    )
    assert _probabilities(over_form) == pytest.approx(expected, abs=1e-4)
    assert (over_form.json()["modality"], over_form.json()["media_cached"]) == (modality, True)

    fitting = service.expected("improve this", modality, data)
    assert len(fitting) == {"image": 6, "audio": 2, "video": 1}[modality]
    assert _probabilities(service.post(json=question)) == pytest.approx(fitting, abs=1e-4)


@pytest.mark.parametrize("modality", [None, "image"])
def test_probabilities_are_calibrated_as_the_bundle_says(
    service: Service, modality: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among the tools that take the medium, and by a decision as by a selection."""
    data = picture(seed=78) if modality else b""
    expected = service.expected("improve this", modality, data, model=SECOND_MODEL)
    media = {"media": {"data": base64.b64encode(data).decode()}} if modality else {}
    selected = service.post(json={"instruction": "improve this", "k": 7, "model": SECOND_MODEL, **media})
    assert _probabilities(selected) == pytest.approx(expected, abs=1e-4)
    parts = [{"type": "input_text", "text": "improve this"}]
    if modality:
        url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
        parts.append({"type": "input_image", "image_url": url})
    body = {
        "model": SECOND_MODEL,
        "input": [{"role": "user", "content": parts}],
        "questions": [{"type": "choice", "instructions": ""}],
    }
    [decided] = httpx.post(f"{service.url}/v1/decisions", json=body, timeout=60).json()["answers"]
    found = {entry["value"]: entry["probability"] for entry in decided["probabilities"]}
    assert found == pytest.approx(expected, abs=1e-4)
    monkeypatch.setitem(CALIBRATIONS, SECOND_MODEL, UNCALIBRATED)
    plain = service.expected("improve this", modality, data, model=SECOND_MODEL)
    assert plain != pytest.approx(expected, abs=1e-2), "so the bundle's calibration matters"
    assert sorted(plain, key=plain.__getitem__) == sorted(expected, key=expected.__getitem__)


def test_remembered_media_are_bounded(service: Service) -> None:
    for seed in range(10, 16):
        service.post(data={"instruction": "a"}, files={"file": ("x", picture(seed))}).raise_for_status()
    encoder = ray_serve.get_deployment_handle("MediaEncoder", APP)
    assert encoder.describe.remote().result()["vectors"] == 3


def test_concurrent_questions_share_batches_and_keep_their_answers(service: Service) -> None:
    questions = [("improve this " + "very " * (i % 5) + "much", i % 6 + 1, i % 3) for i in range(32)]
    pictures = [picture(100), picture(101)]

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


def test_long_words_are_cut_and_said_so(service: Service) -> None:
    assert service.post(json={"instruction": "improve this"}).json()["instruction_cut"] is False
    assert service.post(json={"instruction": "improve this " * 300}).json()["instruction_cut"] is True


@pytest.mark.parametrize(
    ("data", "modality", "status", "code"),
    [
        (b"", None, 400, "empty_media"),
        (b"hello", None, 415, "unsupported_media"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", None, 415, "unsupported_media"),
        (picture()[:200], None, 422, "bad_media"),
        (picture(size=(1001, 1000))[:5000], None, 422, "bad_media"),  # too many pixels says the header
        (video()[:2000], None, 422, "bad_media"),
        (sound(5.1), None, 422, "bad_media"),  # too long
        (sound(0.001), None, 422, "bad_media"),  # too short
        (sound(), "video", 400, "modality_mismatch"),
        (picture(), "audio", 400, "modality_mismatch"),
        (b"x" * (MAX_UPLOAD_BYTES + 1), None, 413, "media_too_large"),
        (b"x" * (3 * MAX_UPLOAD_BYTES), None, 413, "body_too_large"),
    ],
)
def test_bad_media(service: Service, data: bytes, modality: str | None, status: int, code: str) -> None:
    fields = {"instruction": "a"} | ({"modality": modality} if modality else {})
    assert_error(service.post(data=fields, files={"file": ("x", data)}), status, code)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({}, 400, "bad_field"),
        ({"instruction": ""}, 400, "empty_instruction"),
        ({"instruction": "a" * 4001}, 413, "instruction_too_long"),
        ({"instruction": "a", "k": 8}, 400, "bad_k"),
        ({"instruction": "a", "media": {"data": "http://127.0.0.1:8265/"}}, 400, "url_not_allowed"),
        ({"instruction": "a", "media": {"data": "***"}}, 400, "bad_base64"),
    ],
)
def test_bad_fields(service: Service, body: dict[str, Any], status: int, code: str) -> None:
    assert_error(service.post(json=body), status, code)


def test_bad_bodies(service: Service) -> None:
    assert_error(service.post(content=b"{", headers={"Content-Type": "application/json"}), 400, "bad_json")
    assert_error(service.post(content=b"a=b"), 415, "bad_content_type")
    assert_error(httpx.get(service.url + SELECT), 405, "bad_method")
    assert_error(httpx.get(service.url + "/v2/tools"), 404, "not_found")


def test_chunked_body_without_a_length_is_limited(service: Service) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(100):
            yield b"x" * 10_000

    response = service.post(content=chunks(), headers={"Content-Type": "application/json"})
    assert_error(response, 413, "body_too_large")


def test_client_tools_and_health(service: Service, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    answer = select(service.url, "improve this", tmp_path / "a.png", 2)
    assert len(answer["tools"]) == 2
    assert answer["modality"] == "image"
    assert [tool["tool_id"] for tool in list_tools(service.url)["tools"]] == list(CATALOG.tool_ids)
    assert health(service.url)["status"] == "ok"
    with pytest.raises(ServiceError, match=re.compile("the instruction is empty", re.IGNORECASE)):
        select(service.url, " ")
