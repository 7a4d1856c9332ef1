"""One attempt at a server: what is sent, and what is made of what comes back."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from chat_server import ChatServer, Fault, render_answer

from data_pipeline.errors import InputError
from data_pipeline.teacher.endpoint import Attempt, open_endpoint, parse_retry_after
from data_pipeline.teacher.options import TeacherOptions
from data_pipeline.teacher.requests import TeacherRequest

KEY = "sk-a-very-secret-key-0123456789"
REQUEST = TeacherRequest((("system", "Be brief."), ("user", "Where?")), schema={"type": "object"}, max_tokens=9)


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def send(url: str, request: TeacherRequest = REQUEST, **options: Any) -> Attempt:
    async def send_it() -> Attempt:
        async with open_endpoint(TeacherOptions(url=url, model="m", **options)) as endpoint:
            return await endpoint.send(request)

    return asyncio.run(send_it())


def send_to(fault: Fault, **options: Any) -> Attempt:
    with ChatServer(lambda question, n_before: fault) as server:
        return send(server.url, **options)


def test_what_is_sent() -> None:
    with ChatServer() as server:
        attempt = send(server.url)
    assert attempt == Attempt("answer", raw=render_answer("re: Where?").decode())
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where?"}]
    assert server.bodies == [{"model": "m", "messages": messages, "max_tokens": 9, "temperature": 0.7}]
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"


def test_a_schema_is_sent_where_the_server_takes_one() -> None:
    with ChatServer() as server:
        send(server.url, structured_output=True)
    schema = {"name": "answer", "schema": {"type": "object"}, "strict": True}
    assert server.bodies[0]["response_format"] == {"type": "json_schema", "json_schema": schema}


def test_a_server_of_this_machine_is_asked_past_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with ChatServer() as server:
        assert send(server.url).kind == "answer"
    assert send("http://elsewhere.invalid/v1").problem.startswith(
        "the connection broke (Cannot connect to host 127.0.0.1:1"
    )


def test_a_server_that_wants_no_key_gets_none() -> None:
    with ChatServer() as server:
        assert send(server.url, api_key_env="").kind == "answer"
    assert "authorization" not in server.headers[0]


@pytest.mark.parametrize(
    ("fault", "kind", "said"),
    [
        (Fault(500, b"oops"), "failed", "status 500 (oops)"),
        (Fault(502, b""), "failed", "status 502"),
        (Fault(503, b'{"error": {"message": "busy."}}'), "failed", "status 503 (busy)"),
        (Fault(429, b"{}"), "throttled", "status 429"),
        (Fault(400, b'{"error": {"message": "too\\nlong"}}'), "refused", "status 400 (too long)"),
        (Fault(422, b'{"detail": "no"}'), "refused", "status 422 ({'detail': 'no'})"),
        (Fault(200, b"<html>"), "failed", "the answer is cut short or no JSON"),
        (Fault(200, b'{"choices": []}'), "failed", "the answer has no choices"),
        (Fault(200, b'{"error": "busy"}'), "failed", "the server answered with an error: busy"),
        (Fault(cut_bytes=5), "failed", "the connection broke ("),
        (Fault(is_hung=True), "late", "no answer within 0.5 s"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_faults(fault: Fault, kind: str, said: str) -> None:
    attempt = send_to(fault, timeout_s=0.5 if fault.is_hung else 60)
    assert attempt.kind == kind
    assert attempt.problem.startswith(said)


def test_nobody_is_there() -> None:
    with ChatServer() as server:
        url = server.url
    attempt = send(url)
    assert attempt.kind == "failed"
    assert attempt.problem.startswith("the connection broke")


@pytest.mark.parametrize("status", [401, 402, 403, 404])
def test_what_is_wrong_with_every_request_is_one_sentence_without_the_key(status: int) -> None:
    body = json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}"}}).encode()
    with pytest.raises(InputError, match=f"/v1 answered with status {status}: .*\\.$") as caught:
        send_to(Fault(status, body))
    assert KEY not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(400, json.dumps({"error": {"message": "x" * 180 + KEY}}).encode()),
        Fault(500, f"<p>{KEY}</p>".encode()),
        Fault(200, json.dumps({"error": {"message": "x" * 180 + KEY}}).encode()),
        Fault(200, render_answer(f"Your key is {KEY}.")),
    ],
    ids=lambda fault: str(fault.status),
)
def test_a_key_that_the_server_repeats_is_hidden(fault: Fault) -> None:
    attempt = send_to(fault)
    assert KEY[:12] not in attempt.raw + attempt.problem
    assert attempt.problem or "Your key is [key]." in attempt.raw


def test_a_short_key_is_a_word_of_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_KEY", "EMPTY")
    assert "set EMPTY" in send_to(Fault(body=render_answer("set EMPTY")), api_key_env="LOCAL_KEY").raw


@pytest.mark.parametrize("value", [None, "", "  "], ids=repr)
def test_no_key_is_an_error_that_says_where_to_put_it(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    if value is not None:
        monkeypatch.setenv("OPENAI_API_KEY", value)
    with pytest.raises(InputError, match="variable OPENAI_API_KEY is not set; put the key of http://127"):
        send("http://127.0.0.1:9/v1")


@pytest.mark.parametrize("value", ["Bearer sk-1", "sk-ü", "sk\x7f1"], ids=repr)
def test_what_cannot_be_a_key_is_an_error_that_does_not_show_it(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", value)
    with pytest.raises(InputError, match="OPENAI_API_KEY holds more than a key") as caught:
        send("http://127.0.0.1:9/v1")
    assert value not in str(caught.value)


def test_a_request_that_is_no_text_is_refused() -> None:
    with ChatServer() as server:
        attempt = send(server.url, TeacherRequest((("user", "\ud83d"),)))
    assert attempt.kind == "refused"
    assert not server.bodies


def test_retry_after_comes_with_the_attempt() -> None:
    assert send_to(Fault(429, b"{}", {"retry-after": "7"})).retry_after_s == 7
    assert send_to(Fault(503, b"{}", {"retry-after": "8"})).retry_after_s == 8
    assert send_to(Fault(500, b"{}", {"retry-after": "9"})).retry_after_s is None


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        (" 2.5 ", 2.5),
        ("-3", 0),
        ("Wed, 21 Oct 2015 07:28:30 GMT", 30),
        ("Wed, 21 Oct 2015 07:28:30", 30),
        ("Wed, 21 Oct 2015 07:27:00 GMT", 0),
        ("", None),
        ("soon", None),
        ("nan", None),
        ("inf", None),
        ("Wed, 99 Oct 2015 07:28:30 GMT", None),
    ],
    ids=repr,
)
def test_retry_after(value: str, seconds: float | None) -> None:
    assert parse_retry_after({"retry-after": value, "date": "Wed, 21 Oct 2015 07:28:00 GMT"}) == seconds


def test_retry_after_without_the_servers_time() -> None:
    assert parse_retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:30 GMT"}) == 0
    assert parse_retry_after({}) is None
