"""Uploads and requests that mean harm: each is told what is wrong with it, and the service stays as it was."""

from __future__ import annotations

import base64
import json
import socket
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from typing import Any

import httpx
import pytest
from hostile_media import Upload, list_uploads, mutated
from small_service import MAX_UPLOAD_BYTES, MODEL, SELECT, Service, assert_error_form, picture, sound, video
from test_serve_fuzz import CLIENTS, HOSTILE_TEXTS, assert_healthy, flat_memory, upload

pytestmark = [pytest.mark.ray, pytest.mark.slow]

CHAT = "/v1/chat/completions"
ARTIFACTS = "/v1/artifacts"
EDGES = "/v1/tools/local/detect-edges/invoke"
TIMEOUT_S = 30.0
TOOLS = {
    "image": ("local/detect-edges", "image"),
    "audio": ("local/reduce-noise", "audio"),
    "video": ("local/measure-motion", "video"),
}
ASK = f'{{"model": "{MODEL}", "messages": [{{"role": "user", "content": "improve this"}}]'


def ask(service: Service, path: str, **request: Any) -> httpx.Response:
    """The answer; an error has OpenAI's form."""
    answer = httpx.post(service.url + path, timeout=TIMEOUT_S, **request)
    if answer.status_code != 200:
        assert_error_form(answer)
    return answer


def chat_with(part: dict[str, Any]) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": [{"type": "text", "text": "improve this"}, part]}]}


def part_with(text: str, modality: str) -> dict[str, Any]:
    """A message's part that holds a medium, or says where it is."""
    if modality == "audio":
        return {"type": "input_audio", "input_audio": {"data": text, "format": "wav"}}
    kind = f"{modality}_url"
    return {"type": kind, kind: {"url": text}}


def send_everywhere(service: Service, upload: Upload) -> list[str]:
    """Store it, choose a tool for it in three ways, run a tool on it; returns what went otherwise than it should."""
    faults = []

    def expect(where: str, answer: httpx.Response, allowed: tuple[int, ...]) -> None:
        if answer.status_code not in allowed:
            faults.append(f"{upload.name}, {where}: HTTP {answer.status_code}, {answer.text[:200]}")

    text = base64.b64encode(upload.data).decode()
    file = {"file": ("../../a.py", upload.data, "image/png")}
    form = {"instruction": "improve this"} | ({"modality": upload.modality} if upload.modality else {})
    expect("form", ask(service, SELECT, data=form, files=file), upload.encoded)
    body = {"instruction": "improve this", "media": {"data": text, "modality": upload.modality}}
    expect("json", ask(service, SELECT, json=body), upload.encoded)
    modality = upload.modality or upload.kind
    part = part_with(text if modality == "audio" else f"data:text/html;base64,{text}", modality)
    expect("chat", ask(service, CHAT, json=chat_with(part)), upload.encoded)
    stored = ask(service, ARTIFACTS, files={"file": ("../../a.py", upload.data, "application/x-sh")})
    expect("store", stored, upload.stored)
    if stored.status_code == 200:
        found = httpx.get(service.url + stored.json()["path"], timeout=TIMEOUT_S)
        assert found.content == upload.data
        assert found.headers["content-type"].partition("/")[0] in TOOLS
        assert found.headers["x-content-type-options"] == "nosniff"
        tool_id, argument = TOOLS[found.headers["content-type"].partition("/")[0]]
        answer = ask(service, f"/v1/tools/{tool_id}/invoke", json={"arguments": {argument: stored.json()["id"]}})
        expect("tool", answer, (200, 422))
    return faults


def test_uploads_that_mean_harm(service: Service) -> None:
    for data in (picture(), sound(), video()):
        send_everywhere(service, Upload("warm up", data, (200,), (200,)))
    uploads = list_uploads()
    with flat_memory(), ThreadPoolExecutor(CLIENTS) as threads:
        faults = list(threads.map(partial(send_everywhere, service), uploads))
    assert list(chain(*faults)) == []
    assert_healthy(service)


def test_damaged_media(service: Service) -> None:
    def select(data: bytes) -> int:
        file = {"file": ("a", data)}
        return ask(service, SELECT, data={"instruction": "improve this"}, files=file).status_code

    with flat_memory(), ThreadPoolExecutor(CLIENTS) as threads:
        answers = Counter(threads.map(select, mutated(120)))
    assert answers.keys() <= {200, 415, 422}, answers
    assert min(answers[200], answers[422]) > 12
    assert_healthy(service)


@pytest.mark.parametrize("modality", ["image", "audio", "video"])
@pytest.mark.parametrize(
    "text", [*HOSTILE_TEXTS, "/etc/passwd", "//x/y", "ftp://x/y", "HTTP://[::1]/", "artifact:%2e%2e", "javascript:1"]
)
def test_addresses_are_not_asked(service: Service, modality: str, text: str) -> None:
    answer = ask(service, CHAT, json=chat_with(part_with(text, modality)))
    assert answer.status_code in ((404,) if text.startswith("artifact:") else (400, 415)), answer.text


def json_bodies() -> dict[str, tuple[str, bytes, int]]:
    """What it is -> (path, body, the status that it gets)."""
    nines = b"9" * 400
    ask, arguments = ASK.encode(), b'{"arguments": {"image": "%s", "side": %s}}'
    crop = "/v1/tools/local/crop-image/invoke"
    return {
        "nested arrays": (CHAT, b"[" * 100_000, 400),
        "nested objects": (SELECT, b'{"a":' * 50_000, 400),
        "nested and closed": (CHAT, ask + b', "user": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400),
        "keys given twice": (CHAT, ask + b', "model": 5, "model": "%s"}' % MODEL.encode(), 200),
        "an integer of 5000 digits": (CHAT, ask + b', "seed": ' + b"9" * 5000 + b"}", 400),
        "top_logprobs of 400 digits": (CHAT, ask + b', "logprobs": true, "top_logprobs": ' + nines + b"}", 400),
        "k of 400 digits": (SELECT, b'{"instruction": "a", "k": ' + nines + b"}", 400),
        "not-a-number": (CHAT, ask + b', "max_tokens": NaN}', 400),
        "half a surrogate pair": (SELECT, b'{"instruction": "\\ud800"}', 400),
        "no utf-8": (SELECT, b'{"instruction": "\xff"}', 400),
        "utf-16": (SELECT, '{"instruction": "a"}'.encode("utf-16"), 400),
        "an argument of 400 digits": (crop, arguments % (b"0" * 32, nines), 400),
        "an argument of nothing": (crop, arguments % (b"0" * 32, b"NaN"), 400),
        "an artifact of the file system": (crop, arguments % (b"../../../etc/passwd", b"1"), 422),
        "an artifact with a line break": (crop, arguments % (b"0" * 32 + b"\\n", b"1"), 422),
        "no json": (EDGES, b"\0", 400),
        "a tool of the file system": ("/v1/tools/../../etc/passwd/invoke", b"{}", 404),
        "a tool with a zero": ("/v1/tools/%00/invoke", b"{}", 404),
        "a schema without end": (CHAT, ask + _tool(b'{"type": "array", "minItems": %s, "items": {}}' % nines), 400),
        "references that fan out": (CHAT, ask + _tool(b'{"$ref": "#/$defs/0"}', FAN_OUT), 400),
        "patterns that never end": (
            CHAT,
            ask.replace(b"improve this", b"a" * 60 + b"b") + _tool(b'{"type": "string", "allOf": [%s]}' % PATTERNS),
            400,
        ),
        "patterns that must all fit": (
            CHAT,
            ask + b', "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": '
            b'"object", "properties": {"a": {"type": "string", "allOf": [%s]}}}}}}' % PATTERNS,
            400,
        ),
        "choices without end": (CHAT, ask + _tool(b'{"enum": [%s]}' % b",".join([b'"a"'] * 50_000)), 413),
        "bounds that exclude each other": (
            CHAT,
            ask + _tool(b'{"type": "integer", "minimum": %s, "maximum": NaN, "enum": []}' % nines),
            400,  # no number lies between them, and a call is required
        ),
    }


PATTERNS = b",".join(b'{"pattern": "^(a+)+%d$"}' % i for i in range(100))
FAN_OUT = (
    b",".join(b'"%d": {"anyOf": [%s]}' % (i, b",".join([b'{"$ref": "#/$defs/%d"}' % (i + 1)] * 4)) for i in range(14))
    + b', "14": {"type": "integer", "minimum": 5, "maximum": 4}'
)


def _tool(schema: bytes, definitions: bytes = b"") -> bytes:
    parameters = b'{"properties": {"a": %s}, "required": ["a"], "$defs": {%s}}' % (schema, definitions)
    function = b'{"type": "function", "function": {"name": "a", "parameters": %s}}' % parameters
    return b', "tool_choice": "required", "tools": [%s]}' % function


@pytest.mark.parametrize("name", json_bodies())
def test_json_that_means_harm(service: Service, name: str) -> None:
    path, body, status = json_bodies()[name]
    answer = ask(service, path, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text


FORM = "multipart/form-data; boundary=b"
PART = b'--b\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'


def file_part(name: bytes) -> bytes:
    return PART % (b"file", b'; filename="%s"' % name, picture()) + b"--b--\r\n"


@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [
        ("multipart/form-data", b"--b", 400),
        ("multipart/form-data; boundary=" + "b" * 5000, b"--b", 400),
        (FORM, b"", 400),
        (FORM, PART % (b"a", b"", b"b") * 3000 + b"--b--\r\n", 400),
        (FORM, PART % (b"file", b'; filename="a"', b"a") * 3 + b"--b--\r\n", 400),
        (FORM, PART % (b"a" * 20_000, b"", b"b") + b"--b--\r\n", 400),
        (FORM, b"--b\r\n" + b"A: b\r\n" * 5000 + b"\r\n", 400),
        (FORM, file_part(b"a")[:200], 400),
        (FORM, file_part(b"../../../etc/passwd"), 200),
        (FORM, file_part(b"a\0b"), 200),
        (FORM, file_part(b"\xff\xfe"), 200),
        (FORM, file_part(b"a" * 1000), 200),
        (FORM, PART % (b"file", b"; filename*=utf-8''%0d%0aX:%20y", picture()) + b"--b--\r\n", 400),
        (FORM, b"x" * 2 * MAX_UPLOAD_BYTES, 413),
        ("application/json", b"{}", 415),
        ("text/html", b"<script>", 415),
        ("\xff", b"", 415),
        ("", b"", 415),
    ],
)
def test_forms_that_mean_harm(service: Service, content_type: str, body: bytes, status: int) -> None:
    headers = {"Content-Type": content_type.encode("latin-1")}
    answer = ask(service, ARTIFACTS, content=body, headers=headers)
    assert answer.status_code == status, answer.text
    if status == 200:
        assert "etc" not in answer.text
        assert httpx.get(service.url + answer.json()["path"], timeout=TIMEOUT_S).content == picture()


def speak(service: Service, data: bytes, *, is_ended: bool = False) -> int:
    """Send bytes as they are; returns the answer's status, or 0 where the connection is closed without one."""
    url = httpx.URL(service.url)
    with socket.create_connection((url.host, url.port), timeout=TIMEOUT_S) as connection:
        connection.sendall(data)
        if is_ended:
            connection.shutdown(socket.SHUT_WR)
        answer = connection.recv(65_536)
    return int(answer.split()[1]) if answer else 0


POST = b"POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
CHUNK = b"ffff\r\n%s\r\n" % (b" " * 0xFFFF)
GET = b"GET %s HTTP/1.1\r\nHost: %s\r\n\r\n"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (GET % (b"/v1/tools?%ff", b"127.0.0.1"), 200),
        (GET % (b"/v1/tools", b"["), 401),
        (GET % (b"/v1/tools", b"127.0.0.1/healthz?"), 401),
        (GET % (b"/v1/tools", b"\xff"), 401),
        (GET % (b"/v1/artifacts/%2e%2e%2f%2e%2e%2fetc%2fpasswd", b"127.0.0.1"), 404),
        (GET % (b"/v1/artifacts/%00", b"127.0.0.1"), 404),
        (GET % (b"/v1/artifacts/" + b"a" * 5000, b"127.0.0.1"), 404),
        (GET % (b"/page/..%2froutes.py", b"127.0.0.1"), 404),
        (GET % (b"/\xff", b"127.0.0.1"), 400),
        (GET % (b"/" + b"a" * 100_000, b"127.0.0.1"), 400),
        (b"TRACE /v1/tools HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 405),
        (POST % b"/v1/tools/select" + b"Content-Length: -1\r\n\r\n", 400),
        (POST % b"/v1/tools/select" + b"Content-Length: %s\r\n\r\n" % (b"9" * 40), 400),
        (POST % b"/v1/tools/select" + b"Content-Length: 999999999\r\n\r\n{", 413),
        (POST % b"/v1/tools/select" + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}", 400),
        (POST % b"/v1/tools/select" + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (
            POST % b"/v1/chat/completions"
            + b"Transfer-Encoding: chunked\r\n\r\n"
            + b"ffff\r\n%s\r\n" % (b" " * 65_535) * 9,
            413,
        ),
        (POST % b"/v1/tools/select" + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\x08\0", 400),
    ],
)
def test_http_that_means_harm(service: Service, data: bytes, status: int) -> None:
    assert speak(service, data) == status


@pytest.mark.parametrize("path", [SELECT, CHAT, EDGES])
def test_clients_that_go_before_their_body(service: Service, path: str) -> None:
    assert speak(service, POST % path.encode() + b"Content-Length: 9\r\n\r\n{", is_ended=True) == 0
    metrics = httpx.get(f"{service.url}/metrics", timeout=TIMEOUT_S).text
    assert 'status="500"' not in metrics


def test_the_service_is_as_it_was(service: Service) -> None:
    assert_healthy(service)
    again = upload(service, picture())
    assert upload(service, picture()) == again, json.dumps(again)
