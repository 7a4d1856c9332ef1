"""Requests that a machine made up from the OpenAPI description: no internal error, no hang, memory flat."""

from __future__ import annotations

import base64
import random
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from rpc_requests import RpcRequest, make_requests
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.config import SchemathesisConfig
from schemathesis.core.result import Ok
from schemathesis.generation.case import Case
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from small_service import MODEL, SECOND_MODEL, SELECT, Service, assert_error_form, picture, sound, video
from test_serve_outages import find_replicas

from serve.tools.all_tools import load_tools
from serve.tools.spec import Argument

pytestmark = [pytest.mark.ray, pytest.mark.slow]

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
N_REQUESTS = 2000
N_CASES = {  # of valid and of invalid requests each; an operation without parameters has one valid request
    "POST /v1/tools/select": 330,
    "POST /v1/chat/completions": 120,  # the slowest to make up
    "POST /v1/responses": 60,
    "POST /v1/decisions": 60,
    "POST /v1/tools/{tool_id}/invoke": 400,
    "POST /v1/artifacts": 150,
    "GET /v1/artifacts/{artifact_id}": 50,
    "GET /v1/tools": 40,
}
N_RPC = 100  # at /mcp, which the description leaves out, since MCP describes itself
CLIENTS = 6
QUESTIONS_IN = {  # where a request's messages are, and what their parts are called
    "POST /v1/chat/completions": ("messages", "text", "image_url"),
    "POST /v1/responses": ("input", "input_text", "input_image"),
}
MEDIA_KEYS = ("url", "data", "image_url")
UNBOUNDED = (HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large)
LONGEST_S = 60.0
MAX_GROWTH_MIB = 150
TOOLS = ("local/crop-image", "local/upscale-image", "local/estimate-pitch", "local/extract-keyframes")
HOSTILE_TEXTS = (
    "file:///etc/passwd",
    "http://127.0.0.1:8265/",
    "http://169.254.169.254/latest/meta-data",
    "artifact:../../secret.key",
    "data:image/png;base64,",
    "data:text/html;base64,PHNjcmlwdD4=",
    "data:image/png,%00",
    "\0",
)


class Material:
    """What made-up requests are mended with, so that some of them reach the models and the tools."""

    def __init__(self, service: Service) -> None:
        files = {"image": picture(), "audio": sound(), "video": video()}
        self.ids = {modality: upload(service, data) for modality, data in files.items()}
        encoded = [base64.b64encode(data).decode() for data in files.values()]
        self.media = [*encoded, *(f"data:;base64,{text}" for text in encoded), *HOSTILE_TEXTS]
        self.media += [f"artifact:{artifact_id}" for artifact_id in self.ids.values()]
        self.specs = load_tools()
        self.chance = random.Random(1)

    def mend(self, case: Case) -> None:
        """Give a valid request models, media and tools that exist; most of them, and not always the right ones."""
        label, chance = case.operation.label, self.chance
        if chance.random() < 0.1:
            return
        if label == "GET /v1/artifacts/{artifact_id}":
            case.path_parameters["artifact_id"] = chance.choice([*self.ids.values()])
        elif label == "POST /v1/tools/{tool_id}/invoke":
            spec = self.specs[chance.choice(TOOLS)]
            case.path_parameters["tool_id"] = spec.tool_id
            case.body = {"arguments": {argument.name: self._value(argument) for argument in spec.arguments}}
        elif isinstance(case.body, dict):
            case.body = self._mended(case.body)
            if label in QUESTIONS_IN:
                self._ask(case.body, *QUESTIONS_IN[label])
            elif label == "POST /v1/decisions" and chance.random() < 0.7:  # the other kinds are refused
                options = [{"value": value} for value in ("a", "b c", True, *HOSTILE_TEXTS)]
                choices = [{"choices": options[: chance.randint(2, len(options))]}, {}]
                case.body["questions"] = [{"type": "choice", "instructions": "Which?", **more} for more in choices]

    def _ask(self, body: Any, messages: str, text_type: str, image_type: str) -> None:
        """End a chat with words, and resolve what no schema can tell: which fields go together."""
        text = self.chance.choice(["improve this", "### Human: \0<image></s>", "word " * 700, "\u202e\U0001f600"])
        parts: list[dict[str, Any]] = [{"type": text_type, "text": text}]
        if self.chance.random() < 0.5:
            url = self.chance.choice(self.media)
            parts.append({"type": image_type, "image_url": url if messages == "input" else {"url": url}})
        if isinstance(body.get(messages), list):
            body[messages].append({"role": "user", "content": parts})
        if self.chance.random() < 0.8:
            body.pop("previous_response_id", None)  # there is none of a made-up name
        for field, needed in (("stream_options", "stream"), ("top_logprobs", "logprobs")):
            if body.get(field) is not None and not (messages == "input" and needed == "logprobs"):
                body[needed] = True
        for field in ("top_logprobs", "max_tokens", "max_completion_tokens", "max_output_tokens"):
            if isinstance(body.get(field), float):  # JSON schema takes 3.0 for an integer
                body[field] = int(body[field])

    def _value(self, argument: Argument) -> Any:
        if argument.is_media:
            fitting = self.ids[argument.kind]
            return self.chance.choice([fitting, fitting, fitting, *self.ids.values(), *HOSTILE_TEXTS, None, 5])
        numbers = [0, 1, 2, 3, 24, 99.5, -1, 10**400, 2**63, 1e308, -1e308, True, None, "2", [], {}]
        return argument.default if self.chance.random() < 0.5 else self.chance.choice(numbers)

    def _mended(self, value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: self._mended(inner, name) for name, inner in value.items()}
        if isinstance(value, list):
            return [self._mended(inner, key) for inner in value]
        if isinstance(value, str) and key == "model":
            return self.chance.choice([MODEL, MODEL, SECOND_MODEL, f"{MODEL}-agent"])
        return self.chance.choice(self.media) if isinstance(value, str) and key in MEDIA_KEYS else value


def upload(service: Service, data: bytes) -> str:
    answer = httpx.post(f"{service.url}/v1/artifacts", files={"file": ("a", data)}, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()["id"]


def make_cases(operation: APIOperation, mode: GenerationMode, n: int) -> list[Case]:
    """The same cases every time."""
    found: list[Case] = []

    @seed(2)
    @settings(max_examples=n, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=UNBOUNDED)
    @given(operation.as_strategy(generation_mode=mode))
    def collect(case: Case) -> None:
        found.append(case)

    try:
        collect()
    except Unsatisfiable:
        assert mode == GenerationMode.NEGATIVE, "only what has no parameters cannot be wrong"
    return found


def send(service: Service, case: Case, session: requests.Session) -> tuple[str, int]:
    start = time.perf_counter()
    response = case.call(base_url=service.url, session=session, timeout=LONGEST_S)
    assert time.perf_counter() - start < LONGEST_S, case.as_curl_command()
    # a form's file is taken for invalid by the check itself
    is_form = case.media_type == "multipart/form-data"
    case.validate_response(response, checks=CHECKS if is_form else [*CHECKS, negative_data_rejection])
    if response.status_code >= 400:
        assert_error_form(response)
    return case.operation.label, response.status_code


def send_all(service: Service, cases: list[Case]) -> Counter[tuple[str, int]]:
    """(operation, status) -> how often it was answered."""

    def send_share(i: int) -> list[tuple[str, int]]:
        with requests.Session() as session:
            return [send(service, case, session) for case in cases[i::CLIENTS]]

    with ThreadPoolExecutor(CLIENTS) as threads:
        return Counter(entry for share in threads.map(send_share, range(CLIENTS)) for entry in share)


def send_rpc(service: Service, asked: list[RpcRequest]) -> Counter[str]:
    """result, error or no answer at all -> how often it came."""

    def send_share(i: int) -> list[str]:
        found = []
        with httpx.Client(base_url=service.url, timeout=LONGEST_S) as client:
            for request in asked[i::CLIENTS]:
                response = client.post("/mcp", content=request.body, headers=request.headers)
                assert response.status_code < 500, (request, response.text)
                assert "in its log" not in response.text, (request, response.text)
                body = response.json() if response.content else {}
                found.append("error" if "error" in body else "result" if "result" in body else "")
        return found

    with ThreadPoolExecutor(CLIENTS) as threads:
        return Counter(entry for share in threads.map(send_share, range(CLIENTS)) for entry in share)


def memory_mib() -> float:
    """Resident memory of the deployments' replicas."""
    pids = [pid for name in ("Ingress", "Predictor", "MediaEncoder", "LocalTools") for pid in find_replicas(name)]
    assert len(pids) == 4
    status = [Path(f"/proc/{pid}/status").read_text() for pid in pids]
    return sum(int(text.split("VmRSS:")[1].split()[0]) for text in status) / 1024


@contextmanager
def flat_memory() -> Iterator[None]:
    before = memory_mib()
    yield
    growth = memory_mib() - before
    print(f"memory grew by {growth:.0f} MiB from {before:.0f}")
    assert growth < MAX_GROWTH_MIB


def assert_healthy(service: Service) -> None:
    assert httpx.get(f"{service.url}/healthz", timeout=30).json()["status"] == "ok"
    data = picture(7)
    answer = service.post(data={"instruction": "improve this", "k": 7}, files={"file": ("a.png", data)}).json()
    found = {tool["tool_id"]: tool["probability"] for tool in answer["tools"]}
    assert found == pytest.approx(service.expected("improve this", "image", data), rel=1e-3)


def test_made_up_requests(service: Service) -> None:
    start = time.perf_counter()
    material = Material(service)
    config = SchemathesisConfig.from_dict({"checks": {"negative_data_rejection": {"expected-statuses": ["4XX"]}}})
    schema = schemathesis.openapi.from_url(f"{service.url}/openapi.json", config=config)
    cases: list[Case] = []
    for result in schema.get_all_operations():
        assert isinstance(result, Ok), "the description is no valid OpenAPI"
        operation = result.ok()
        n = N_CASES.get(operation.label, 1)
        valid = make_cases(operation, GenerationMode.POSITIVE, n)
        for case in valid:
            material.mend(case)
        cases += [*valid, *make_cases(operation, GenerationMode.NEGATIVE, n)]
    material.chance.shuffle(cases)
    names = {name: [argument.name for argument in material.specs[name].arguments] for name in TOOLS}
    tools = {name.replace("/", "__"): arguments for name, arguments in names.items()} | {"tool_search": ["query", "k"]}
    rpc = make_requests(N_RPC, tools, [*material.media, *material.ids.values()])
    made = time.perf_counter()
    n_warm_up = len(cases) // 4
    answers = send_all(service, cases[:n_warm_up])
    with flat_memory():
        answers += send_all(service, cases[n_warm_up:])
        rpc_answers = send_rpc(service, rpc)
    print(f"/mcp: {dict(rpc_answers)}")
    assert min(rpc_answers["result"], rpc_answers["error"]) > 10
    print(f"{answers.total()} requests made in {made - start:.0f} s, sent in {time.perf_counter() - made:.0f} s")
    print(sorted(answers.items()))
    assert answers.total() >= N_REQUESTS
    chats = [f"POST /v1/{route}" for route in ("chat/completions", "responses", "decisions")]
    for label in (f"POST {SELECT}", "POST /v1/tools/{tool_id}/invoke", *chats):
        assert answers[label, 200] > 10, "the requests do not get far enough to find anything"
    assert_healthy(service)
