"""The page in a browser with a stand-in for the service: its own reading of uploads and chats, no model and no Ray."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, Request, Response, UploadFile
from fastapi.responses import JSONResponse
from playwright.sync_api import Browser, expect, sync_playwright
from small_service import free_port

from serve.agent.events import describe_artifact
from serve.artifacts import ArtifactStore
from serve.chat.content import ChatLimits, Conversation, parse_conversation, store_media
from serve.chat.schemas import ChatRequest, parse_chat_request
from serve.http.schemas import RequestError
from serve.page.routes import add_page_routes

Answer = Callable[[ChatRequest, Conversation], Any]  # a completion as JSON, or a response

NO_TOOLS = {"tools": [], "others": []}


def build_stand_in(
    store: ArtifactStore, answer: Answer, models: Sequence[str] = ("toolmm",), tools: dict[str, Any] = NO_TOOLS
) -> FastAPI:
    """The routes that the page uses but those of tools' calls."""
    api = FastAPI()
    add_page_routes(api)

    @api.exception_handler(RequestError)
    async def tell(_: Request, error: RequestError) -> JSONResponse:
        return JSONResponse({"error": {"message": error.message}}, error.status)

    @api.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return {"data": [{"id": name} for name in models]}

    @api.get("/v1/tools")
    async def list_tools() -> dict[str, Any]:
        return tools

    @api.post("/v1/artifacts")
    async def upload(file: UploadFile) -> dict[str, Any]:
        return describe_artifact(store.put(await file.read(), file.content_type or "", file.filename or ""))

    @api.get("/v1/artifacts/{artifact_id}")
    async def download(artifact_id: str) -> Response:
        artifact, data = store.open(artifact_id)
        return Response(data, media_type=artifact.media_type)

    @api.post("/v1/chat/completions")
    async def complete(request: Request) -> Any:
        wanted = parse_chat_request(await request.body())
        return answer(wanted, store_media(parse_conversation(wanted, ChatLimits()), store))

    @api.get("/favicon.ico")
    async def icon() -> Response:
        return Response(status_code=204)

    return api


@contextmanager
def serving(api: FastAPI) -> Iterator[str]:
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(api, host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(10)


@contextmanager
def open_browser(*args: str) -> Iterator[Browser]:
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    if browser_path is None:
        pytest.skip("no Chromium: Debian's package `chromium` has it")
    expect.set_options(timeout=20_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox", *args])
        yield browser
        browser.close()
