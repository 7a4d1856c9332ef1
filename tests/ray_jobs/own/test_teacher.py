"""The template teacher over HTTP: what `generate` asks it, and what it refuses."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from data_pipeline.instruct.queries import render_query_prompt
from data_pipeline.instruct.template_teacher import answer_prompt
from data_pipeline.records.catalog import Tool
from data_pipeline.teacher.cache import ReplyCache
from data_pipeline.teacher.client import Teacher
from data_pipeline.teacher.requests import TeacherRequest
from ray_jobs.own.teacher import template_teacher


def test_it_is_asked_as_any_teacher_is(tmp_path: Path) -> None:
    prompt = render_query_prompt(Tool("my/post", "Sends letters to customers."), (), (0, 1), is_ambiguous=False)
    requests = [TeacherRequest((("user", f"{text}"),)) for text in (prompt, "Hello?")]

    async def ask(teacher: Teacher) -> dict[int, str]:
        return {number: reply.text async for number, reply in teacher.ask_all(requests)}

    with template_teacher() as options, ReplyCache(tmp_path) as cache:
        assert options.url.startswith("http://127.0.0.1:")
        assert asyncio.run(ask(Teacher(options, cache))) == {0: answer_prompt(prompt), 1: answer_prompt("Hello?")}


@pytest.mark.parametrize(
    ("path", "body", "length", "status"),
    [
        ("/chat/completions", b"{", 1, 400),
        ("/chat/completions", b'{"messages": []}', 16, 400),
        ("/chat/completions", b'{"messages": [{"content": 1}]}', 30, 400),
        ("/chat/completions", b"{}", 1_000_001, 413),
        ("/models", b"{}", 2, 404),
    ],
    ids=["no JSON", "no messages", "no text", "too long", "elsewhere"],
)
def test_what_is_no_request_is_refused(path: str, body: bytes, length: int, status: int) -> None:
    with template_teacher() as options:
        request = urllib.request.Request(options.url + path, body, {"Content-Length": str(length)})
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=10)
    assert caught.value.code == status
