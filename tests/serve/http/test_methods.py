"""HEAD and OPTIONS: of every path that takes GET or POST."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from small_media import picture
from stand_in_service import SELECT, World
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from serve.http.methods import OtherMethods


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(artifacts=str(tmp_path))


def test_head_is_get_without_its_body(world: World) -> None:
    artifact = world.chat.store.of("local").put(picture())
    for path in ("/", "/healthz", "/metrics", "/v1/models", "/v1/models/toolmm", f"/v1/artifacts/{artifact.id}"):
        whole, head = world.client.get(path), world.client.head(path)
        assert (head.status_code, head.content) == (whole.status_code, b""), path
        assert head.headers["content-type"] == whole.headers["content-type"]
        if path != "/metrics":
            assert head.headers["content-length"] == str(len(whole.content))
    assert world.client.head("/v1/models/other").status_code == 404
    assert world.client.head(SELECT).status_code == 405
    assert (
        'toolmm_requests_total{method="HEAD",route="/v1/models",status="200"} 1.0' in world.client.get("/metrics").text
    )


def test_options_name_the_methods_of_every_path(world: World) -> None:
    paths = world.client.get("/openapi.json").json()["paths"]
    assert len(paths) > 5
    for template, operations in paths.items():
        answer = world.client.options(re.sub(r"\{\w+\}", "0" * 32, template))
        assert (answer.status_code, answer.content) == (204, b"")
        methods = answer.headers["allow"].split(", ")
        assert {"OPTIONS", *map(str.upper, operations)} <= set(methods)
        assert ("HEAD" in methods) == ("GET" in methods)
    missing = world.client.options("/v1/nowhere")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")


def test_the_methods_of_all_routes_of_a_path_are_told() -> None:
    async def answer(request: Request) -> PlainTextResponse:
        return PlainTextResponse(request.method)

    app = Starlette(routes=[Route("/{name}", answer, methods=["DELETE"]), Route("/a", answer, methods=["GET"])])
    app.add_middleware(OtherMethods)
    client = TestClient(app)
    assert client.options("/a").headers["allow"] == "DELETE, GET, HEAD, OPTIONS"
    assert client.options("/b").headers["allow"] == "DELETE, OPTIONS"
    assert client.get("/a").text == "GET"
