"""The routes over stand-ins for the model deployments: parsing, limits, errors. Real ones: tests/integration."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import time
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.testclient import TestClient
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from ray.serve.exceptions import BackPressureError
from ray.serve.schema import DeploymentStatus
from stand_in_service import CATALOG, RANKING, SELECT, Method, World
from starlette.types import Message

from data_pipeline.errors import InputError, MediaError
from data_pipeline.records.catalog import Tool, ToolCatalog
from serve.deployments.ingress import build_api
from serve.engine.messages import ServedModel
from serve.http.access import KEYS_VARIABLE
from serve.http.schemas import RequestError


@pytest.fixture
def world() -> World:
    return World()


def _assert_error(response: Any, status: int, code: str, param: str | None = None) -> str:
    """The error has its form and tells nothing about this machine; returns the message."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert body.keys() == {"error"}
    error = body["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (code, param)
    assert error["type"] == ("invalid_request_error" if status < 500 else "server_error")
    assert "\n" not in error["message"]
    assert "Traceback" not in response.text
    assert ".py" not in response.text
    return error["message"]


def test_text_question(world: World) -> None:
    answer = world.select(instruction=" Improve it ").json()
    assert [(tool["tool_id"], tool["probability"]) for tool in answer["tools"]] == RANKING
    assert answer["tools"][0] == {
        "tool_id": "deblur",
        "probability": 0.7,
        "description": "Sharpens.",
        "input_modality": "image",
        "output_modality": "image",
        "backend": "local",
    }
    assert (answer["modality"], answer["abstained"], answer["p_unknown"]) == ("text", False, 0.2)
    assert answer["bundle_revision"] == "rev"
    assert answer["timing"]["media_ms"] == 0
    assert world.predictor.asked[0].instruction == " Improve it ", "nothing is stripped"
    assert world.predictor.asked[0].vector is None


def test_unknown_first_is_abstention(world: World) -> None:
    world.predictor.ranking = [("unknown", 0.9), ("deblur", 0.1)]
    assert world.select(instruction="a").json()["abstained"] is True


def test_k_cuts_the_list_but_not_p_unknown(world: World) -> None:
    answer = world.select(instruction="a", k=1).json()
    assert [tool["tool_id"] for tool in answer["tools"]] == ["deblur"]
    assert answer["p_unknown"] == 0.2
    assert world.predictor.asked[0].k == 1


def test_json_medium(world: World) -> None:
    data = base64.b64encode(b"\x00\xff").decode()
    answer = world.select(instruction="a", media={"data": data, "modality": "audio"}).json()
    assert world.encoder.asked == [(b"\x00\xff", "audio")]
    assert answer["modality"] == "audio"
    vector = world.predictor.asked[0].vector
    assert vector is not None
    assert vector.tolist() == [1, 1, 1, 1]
    assert world.predictor.asked[0].takes == "audio", "tools for pictures are no answer to a sound"
    world.select(instruction="a", media={"data": data, "modality": "audio"}, any_modality=True)
    world.select(instruction="a")
    assert [asked.takes for asked in world.predictor.asked[1:]] == ["", ""]


def test_multipart_medium_is_byte_identical(world: World) -> None:
    data = bytes(range(256)) + b"\r\n--boundary\r\n"
    response = world.client.post(
        SELECT,
        data={"instruction": "grüße", "k": "2", "modality": "video", "any_modality": "true"},
        files={"file": ("../../etc/passwd", io.BytesIO(data), "text/html")},
    )
    assert response.status_code == 200, response.text
    assert world.encoder.asked == [(data, "video")]
    assert (world.predictor.asked[0].instruction, world.predictor.asked[0].k) == ("grüße", 2)
    assert world.predictor.asked[0].takes == ""


def test_multipart_without_a_medium(world: World) -> None:
    response = world.client.post(SELECT, files={"instruction": (None, "a")})
    assert response.status_code == 200, response.text
    assert world.encoder.asked == []


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ({}, 400, "bad_field", "instruction"),
        ({"instruction": 5}, 400, "bad_field", "instruction"),
        ({"instruction": " "}, 400, "empty_instruction", "instruction"),
        ({"instruction": "a" * 51}, 413, "instruction_too_long", "instruction"),
        ({"instruction": "a", "k": 0}, 400, "bad_k", "k"),
        ({"instruction": "a", "k": 4}, 400, "bad_k", "k"),
        ({"instruction": "a", "k": "2"}, 400, "bad_field", "k"),
        ({"instruction": "a", "k": 1.5}, 400, "bad_field", "k"),
        ({"instruction": "a", "k": True}, 400, "bad_field", "k"),
        ({"instruction": "a", "extra": 1}, 400, "bad_field", "extra"),
        ({"instruction": "a", "any_modality": "perhaps"}, 400, "bad_field", "any_modality"),
        ({"instruction": "a", "media": "x"}, 400, "bad_field", "media"),
        ({"instruction": "a", "media": {}}, 400, "bad_field", "media.data"),
        ({"instruction": "a", "media": {"data": "AA==", "modality": "smell"}}, 400, "bad_field", "media.modality"),
        ({"instruction": "a", "media": {"data": "A"}}, 400, "bad_base64", "media.data"),
        ({"instruction": "a", "media": {"data": "http://169.254.169.254/"}}, 400, "url_not_allowed", "media.data"),
        ({"instruction": "a", "media": {"data": "A" * 1400}}, 413, "media_too_large", "media.data"),
    ],
)
def test_bad_json_fields(world: World, body: dict[str, Any], status: int, code: str, param: str) -> None:
    answer = world.select(**body)
    _assert_error(answer, status, code, param)
    assert not re.search("Input should|permitted|interpret", answer.json()["error"]["message"]), "pydantic's own words"
    assert not world.predictor.asked
    assert not world.encoder.asked


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b'{"instruction": "\\ud800"}', b"[" * 5000])
def test_bad_json(world: World, body: bytes) -> None:
    response = world.client.post(SELECT, content=body, headers={"Content-Type": "application/json"})
    _assert_error(response, 400, "bad_json")


@pytest.mark.parametrize("body", [b"[]", b"null", b'"a"'])
def test_json_of_another_kind(world: World, body: bytes) -> None:
    response = world.client.post(SELECT, content=body, headers={"Content-Type": "application/json"})
    _assert_error(response, 400, "bad_field")


@pytest.mark.parametrize(
    ("fields", "file", "status", "code", "param"),
    [
        ({}, b"x", 400, "empty_instruction", "instruction"),
        ({"instruction": "a", "k": "two"}, b"x", 400, "bad_k", "k"),
        ({"instruction": "a", "k": "99999999999999999999"}, b"x", 400, "bad_k", "k"),
        ({"instruction": "a", "url": "http://x"}, b"x", 400, "bad_field", "url"),
        ({"instruction": ["a", "b"]}, b"x", 400, "bad_field", "instruction"),
        ({"instruction": "a", "modality": "text"}, b"x", 400, "bad_field", "modality"),
        ({"instruction": "a", "any_modality": "perhaps"}, b"x", 400, "bad_field", "any_modality"),
        ({"instruction": "a", "file": "x"}, None, 400, "bad_field", "file"),
        ({"instruction": "a", "modality": "image"}, None, 400, "bad_field", "modality"),
        ({"instruction": "a"}, b"x" * 1001, 413, "media_too_large", "file"),
    ],
)
def test_bad_forms(
    world: World, fields: dict[str, Any], file: bytes | None, status: int, code: str, param: str
) -> None:
    parts: list[Any] = [
        (name, (None, value))
        for name, values in fields.items()
        for value in (values if isinstance(values, list) else [values])
    ]
    if file is not None:
        parts.append(("file", ("f", file)))
    _assert_error(world.client.post(SELECT, files=parts), status, code, param)
    assert not world.predictor.asked
    assert not world.encoder.asked


def test_two_files_are_refused(world: World) -> None:
    files = [("file", ("a", b"x")), ("file", ("b", b"y"))]
    _assert_error(world.client.post(SELECT, data={"instruction": "a"}, files=files), 400, "bad_request")


def test_malformed_multipart(world: World) -> None:
    for content_type in ("multipart/form-data", "multipart/form-data; boundary=x"):
        response = world.client.post(SELECT, content=b"--y\r\nrubbish", headers={"Content-Type": content_type})
        assert response.status_code == 400, response.text
        assert "error" in response.json()


def test_other_content_types(world: World) -> None:
    response = world.client.post(SELECT, content=b"{}", headers={"Content-Type": "text/plain"})
    _assert_error(response, 415, "bad_content_type")


def test_announced_body_is_refused_before_it_is_read(world: World) -> None:
    response = world.client.post(
        SELECT, content=b"x" * (world.args.max_body_bytes + 1), headers={"Content-Type": "application/json"}
    )
    _assert_error(response, 413, "body_too_large")


@pytest.mark.parametrize("content_type", ["application/json", "multipart/form-data; boundary=b"])
def test_unannounced_body_is_cut_off_while_reading(world: World, content_type: str) -> None:
    n_read = 0

    async def receive() -> Message:
        nonlocal n_read
        n_read += 1
        head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n' if n_read == 1 else b""
        return {"type": "http.request", "body": head + b"x" * 10_000, "more_body": True}  # for ever

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": SELECT,
        "query_string": b"",
        "headers": [(b"content-type", content_type.encode()), (b"host", b"127.0.0.1")],
        "client": ("127.0.0.1", 50_000),
    }
    asyncio.run(world.api(scope, receive, send))
    assert sent[0]["status"] == 413
    assert json.loads(sent[1]["body"])["error"]["code"] == "body_too_large"
    assert n_read == world.args.max_body_bytes // 10_000 + 1, "no more is read than tells that it is too much"


@pytest.mark.parametrize(
    ("error", "status", "code", "param"),
    [
        (MediaError("The picture is truncated."), 422, "bad_media", "media"),
        (
            RequestError("No kind.", status=415, code="unsupported_media", param="media"),
            415,
            "unsupported_media",
            "media",
        ),
        (InputError("The words do not fit."), 400, "bad_request", None),
        (BackPressureError(10, 10), 503, "overloaded", None),
        (RuntimeError("secret /home/x/y.py"), 500, "internal_error", None),
    ],
)
def test_failures_behind_the_routes(world: World, error: Exception, status: int, code: str, param: str | None) -> None:
    def fail(*_: Any) -> Any:
        raise error

    world.predictor.select = Method(fail)
    response = world.select(instruction="a")
    message = _assert_error(response, status, code, param)
    assert "secret" not in message
    assert ("retry-after" in response.headers) == (status == 503)


def test_slow_answers_time_out() -> None:
    world = World(request_timeout_s=0.05)
    world.predictor.select = Method(lambda _: asyncio.sleep(5))
    _assert_error(world.select(instruction="a"), 504, "timeout")


def test_a_body_that_is_too_slow_is_told_so_however_late_the_service_looks() -> None:
    """Where its event loop was busy, the limits of body and request are over at once."""
    world, sent = World(request_timeout_s=0.05), []

    async def receive() -> Any:
        time.sleep(0.2)
        await asyncio.sleep(60)

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json"), (b"host", b"127.0.0.1")]
    scope = {"type": "http", "method": "POST", "path": SELECT, "query_string": b"", "headers": headers}
    asyncio.run(world.api({**scope, "client": ("127.0.0.1", 50_000)}, receive, send))
    assert sent[0]["status"] == 408


def test_tools_lists_the_catalogue(world: World) -> None:
    body = world.client.get("/v1/tools").json()
    assert [tool["tool_id"] for tool in body["tools"]] == list(CATALOG.tool_ids)
    assert body["catalog_sha256"] == CATALOG.content_hash
    assert [tool["parameters"] for tool in body["tools"]] == [None] * 3, "names that nothing here runs"
    assert [tool["fine_functionality"] for tool in body["tools"]] == ["Image Deblurring", "", ""]
    others = {tool["tool_id"]: tool for tool in body["others"]}
    assert others.keys() == world.chat.specs.keys()
    edges = others["local/detect-edges"]
    assert (edges["input_modality"], edges["output_modality"], edges["backend"]) == ("image", "image", "local")
    assert edges["parameters"] == world.chat.specs["local/detect-edges"].json_schema()


def test_health_asks_both_deployments(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    assert world.client.get("/healthz").json() == {
        "status": "ok",
        "predictor": "ok",
        "encoder": "ok",
        "models": {"toolmm": "rev"},
    }

    def fail() -> None:
        raise RuntimeError("gone")

    world.encoder.describe = Method(fail)
    assert world.client.get("/healthz").status_code == 200, "who asks again at once is not asked about again"
    monkeypatch.setattr("serve.deployments.ingress.HEALTH_AGE_S", -1.0)
    response = world.client.get("/healthz")
    assert response.status_code == 503
    assert (response.json()["status"], response.json()["encoder"]) == ("unavailable", "failed")


def test_health_is_asked_after_for_no_one_request(world: World) -> None:
    request, seen = ContextVar("request", default="none"), []
    world.predictor.describe = Method(lambda: seen.append(request.get()) or {"revisions": {"toolmm": "rev"}})
    request.set("the first one that asks")
    assert asyncio.run(world.service.health()).status == "ok"
    assert seen == ["none"], "or Ray Serve would end it with that one, while others wait for it"


def test_health_starts_no_replica_where_there_may_be_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Ray Serve says of the deployments stands for the answers of replicas, which a question would start."""
    world = World(min_replicas=0)
    said = {"Predictor": DeploymentStatus.UPSCALING, "MediaEncoder": DeploymentStatus.HEALTHY}

    def status() -> SimpleNamespace:
        deployments = {name: SimpleNamespace(status=word, message="") for name, word in said.items()}
        return SimpleNamespace(applications={"app": SimpleNamespace(deployments=deployments)})

    def ask() -> None:
        raise AssertionError("a replica was asked")

    monkeypatch.setattr("serve.deployments.ingress.ray_serve.status", status)
    monkeypatch.setattr("serve.deployments.ingress.HEALTH_AGE_S", -1.0)
    for name, handle in (("Predictor", world.predictor), ("MediaEncoder", world.encoder)):
        handle.app_name, handle.deployment_name, handle.describe = "app", name, Method(ask)
    assert world.client.get("/healthz").json()["status"] == "ok"
    assert world.client.get("/metrics").status_code == 200
    said["Predictor"] = DeploymentStatus.UNHEALTHY
    response = world.client.get("/healthz")
    assert (response.status_code, response.json()["predictor"], response.json()["encoder"]) == (503, "failed", "ok")


def test_unknown_paths_and_methods(world: World) -> None:
    _assert_error(world.client.get("/nowhere"), 404, "not_found")
    _assert_error(world.client.get(SELECT), 405, "bad_method")


def test_openapi_describes_both_body_forms(world: World) -> None:
    content = world.client.get("/openapi.json").json()["paths"][SELECT]["post"]["requestBody"]["content"]
    assert content.keys() == {"application/json", "multipart/form-data"}
    assert "$ref" not in json.dumps(content)


def test_with_keys_openapi_is_for_their_holders(monkeypatch: pytest.MonkeyPatch) -> None:
    key = "a-key-of-the-tests-1"
    monkeypatch.setenv(KEYS_VARIABLE, f"ada:{key}")
    client = World().client
    for headers in ({}, {"Authorization": "Bearer another-key-of-the-tests"}):
        refused = client.get("/openapi.json", headers=headers)
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
    answer = client.get("/openapi.json", headers={"Authorization": f"Bearer {key}"})
    assert answer.status_code == 200
    assert SELECT in answer.json()["paths"]


def test_metrics_count_requests_without_what_was_asked(world: World) -> None:
    world.select(instruction="a secret wish")
    assert world.client.get("/v1/nowhere").status_code == 404
    text = world.client.get("/metrics").text
    assert f'toolmm_requests_total{{method="POST",route="{SELECT}",status="200"}} 1.0' in text
    assert 'toolmm_requests_total{method="GET",route="other",status="404"} 1.0' in text
    assert 'toolmm_batch_size{deployment="Predictor"} 3.0' in text
    assert f'toolmm_request_seconds_count{{route="{SELECT}"}} 1.0' in text
    assert "secret" not in text


def test_every_answer_bears_an_id(world: World) -> None:
    assert world.client.get("/v1/tools", headers={"X-Request-ID": "mine-1"}).headers["x-request-id"] == "mine-1"
    made_up = world.client.get("/v1/tools", headers={"X-Request-ID": "no id, rather a text"}).headers["x-request-id"]
    assert len(made_up) == 32
    world.predictor.select = Method(lambda _: [1 / 0])
    failed = world.select(instruction="a")
    assert failed.status_code == 500
    assert len(failed.headers.get_list("x-request-id")) == 1


def test_behind_ray_serve_its_own_id_is_the_only_one(caplog: pytest.LogCaptureFixture) -> None:
    """Ray Serve's servers hand a request's id on and put it into the answer themselves."""
    world = World()
    api = build_api(world.service, world.chat, is_behind_ray=True)
    client = TestClient(api, base_url="http://127.0.0.1", client=("127.0.0.1", 50000))
    with caplog.at_level("INFO", logger="ray.serve"):
        answer = client.get("/v1/tools", headers={"X-Request-ID": "an odd\tid" + "x" * 99})
    assert "x-request-id" not in answer.headers
    assert json.loads(caplog.records[-1].message)["request_id"] == "an?odd?id" + "x" * 55


def test_pages_elsewhere_may_ask_only_where_they_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    page = "https://chat.example.org"
    asked = {"Origin": page, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    closed, opened = World(), World(cors_origins=[page])
    assert "access-control-allow-origin" not in closed.client.options(SELECT, headers=asked).headers
    assert "access-control-allow-origin" not in closed.client.get("/v1/models", headers=asked).headers
    preflight = opened.client.options(SELECT, headers=asked)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == page
    assert "authorization" in preflight.headers["access-control-allow-headers"]
    opened.predictor.select = Method(lambda _: [1 / 0])
    for answer in (
        opened.client.get("/v1/models", headers=asked),
        opened.client.post(SELECT, json={"instruction": "a"}, headers=asked),
        opened.client.post(SELECT, json={}, headers=asked),
    ):
        assert answer.headers["access-control-allow-origin"] == page, answer.status_code
        assert "X-Request-ID" in answer.headers["access-control-expose-headers"]
    other = opened.client.get("/v1/models", headers={"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers
    with pytest.raises(InputError, match="cors_origins"):
        World(cors_origins=["*"])
    monkeypatch.setenv("TOOLMM_API_KEYS", "a-key-of-the-tests")
    refused = World(cors_origins=["*"]).client.get("/v1/models", headers=asked)
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, "*")


def test_the_page_asks_no_one_else(world: World) -> None:
    answer = world.client.get("/")
    assert answer.headers["content-type"].startswith("text/html")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for path in re.findall(r'(?:src|href)="(/[^"]*)"', answer.text):
        assert world.client.get(path).status_code == 200, path
    assert "//" not in answer.text.replace("<!doctype", ""), "no address of another host"
    assert world.client.get("/page/routes.py").status_code == 404


def test_an_answer_of_a_newer_bundle_is_learnt_from(world: World) -> None:
    """The predictor takes over a bundle by itself; its catalogue becomes ours with its first answer."""
    newer = ToolCatalog([*CATALOG, Tool("rotate", "Turns.")])
    world.predictor.revision = "newer"
    world.predictor.list_models = Method(lambda: [ServedModel("toolmm", newer, "newer")])
    world.predictor.ranking = [("unknown", 0.8), ("deblur", 0.2)]
    assert world.client.get("/v1/tools").json()["bundle_revision"] == "rev"
    assert world.select(instruction="turn it").json()["bundle_revision"] == "newer"
    listed = world.client.get("/v1/tools").json()
    assert (listed["bundle_revision"], len(listed["tools"])) == ("newer", 4)
    assert world.client.get("/healthz").json()["models"] == {"toolmm": "newer"}


def test_models_are_chosen_by_name(world: World) -> None:
    world.select(instruction="x", model="toolmm")
    assert world.predictor.asked[-1].model == "toolmm"
    _assert_error(world.select(instruction="x", model="other"), 404, "model_not_found", "model")
    form = world.client.post(SELECT, data={"instruction": "x", "model": "other"}, files={"file": ("a", b"x")})
    _assert_error(form, 404, "model_not_found", "model")
    _assert_error(world.client.get("/v1/tools", params={"model": "other"}), 404, "model_not_found", "model")


def test_a_model_that_was_trained_on_no_dialogues_is_no_agent(world: World) -> None:
    def ids() -> list[str]:
        return [entry["id"] for entry in world.client.get("/v1/models").json()["data"]]

    assert ids() == ["toolmm", "toolmm-agent"]
    world.predictor.revision = "newer"
    world.predictor.list_models = Method(lambda: [ServedModel("toolmm", CATALOG, "newer", writes_dialogues=False)])
    world.select(instruction="x")
    assert ids() == ["toolmm"]
    chat = {"messages": [{"role": "user", "content": "hi"}]}
    for body, param in (({"model": "toolmm-agent"}, "model"), ({"model": "toolmm", "agent": True}, "agent")):
        _assert_error(world.client.post("/v1/chat/completions", json=chat | body), 400, "no_agent", param)


def test_requests_are_spans_where_there_is_a_tracer_provider(world: World) -> None:
    spans, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    trace.set_tracer_provider(provider)
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    for body in ({"instruction": "a secret wish"}, {"instruction": "a secret wish", "k": "secret"}):
        world.client.post(SELECT, json=body, headers={"traceparent": parent, "Authorization": "Bearer secret-key"})
    provider.shutdown()  # other tests leave no spans
    found = spans.get_finished_spans()
    requests = [span for span in found if span.kind == trace.SpanKind.SERVER]
    assert [span.attributes["http.response.status_code"] for span in requests if span.attributes] == [200, 400]
    assert {span.attributes["http.route"] for span in requests if span.attributes} == {SELECT}
    assert {format(span.context.trace_id, "032x") for span in found if span.context} == {parent.split("-")[1]}
    assert not any("secret" in span.to_json() for span in found)
