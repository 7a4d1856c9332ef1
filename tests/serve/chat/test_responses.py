"""OpenAI's Responses API: a request is the chat that it stands for, its answer has the official client's types."""

from __future__ import annotations

import base64
import json
from typing import Any

import openai
import pytest
from openai.types.responses import Response
from pydantic import TypeAdapter
from small_media import picture, sound
from stand_in_service import CATALOG, World, let_write

from data_pipeline.records.dialogue import render_answer
from model.decode.turn_types import TurnRequest, WrittenTurn
from serve.chat.schemas import ChatRequest
from serve.chat.served_models import ServedModels
from serve.engine.messages import ServedModel

PATH = "/v1/responses"
PICTURE = "data:image/png;base64," + base64.b64encode(picture()).decode()
MEND = {"type": "function", "name": "mend", "description": "Mends it.", "parameters": {"type": "object"}}
CALLED = {"type": "function_call", "call_id": "c1", "name": "mend", "arguments": "{}"}


class Answering(World):
    """A service without dialogues: functions of the caller are ranked like tools; its agent answers at once."""

    def __init__(self, *, writes_dialogues: bool = False, **args: Any) -> None:
        super().__init__(max_upload_bytes=20_000, **args)
        model = ServedModel("toolmm", CATALOG, "rev", writes_dialogues=writes_dialogues)
        self.chat.models = self.chat.selector.models = ServedModels([model], self.predictor)
        self.turns: list[TurnRequest] = []
        self.chats: list[ChatRequest] = []
        predictor: Any = self.predictor
        let_write(predictor, self._write)
        answer = self.chat.answer

        async def note(request: ChatRequest, caller: str) -> Any:
            self.chats.append(request)
            return await answer(request, caller)

        self.chat.answer = note  # pyright: ignore[reportAttributeAccessIssue]

    def _write(self, _: str, request: TurnRequest) -> WrittenTurn:
        self.turns.append(request)
        return WrittenTurn(render_answer("Hello, I am here."), 5, 4, ())

    def ask(self, given: Any = "Sharpen it", **more: Any) -> Any:
        return self.client.post(PATH, json={"model": "toolmm", "input": given, **more})

    def error(self, given: Any = "Sharpen it", **more: Any) -> tuple[int, str, str]:
        answer = self.ask(given, **more)
        assert answer.status_code >= 400, answer.text
        error = answer.json()["error"]
        return answer.status_code, error["code"], error["param"]


def user(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def text(words: str) -> dict[str, Any]:
    return {"type": "input_text", "text": words}


def events_of(answer: Any) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for block in answer.text.strip().split("\n\n"):
        event, data = block.split("\n")
        found.append((event.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def test_a_response_has_the_official_types() -> None:
    world = Answering()
    answer = world.ask(instructions="Be kind.", metadata={"a": "b"}, temperature=0.5, user="ada")
    assert answer.status_code == 200, answer.text
    found = Response.model_validate(answer.json(), strict=True)
    (call,) = found.output
    assert (call.type, call.name, call.arguments, call.status) == ("function_call", "deblur", "{}", "completed")
    assert (found.status, found.instructions, found.metadata, found.tool_choice) == (
        "completed",
        "Be kind.",
        {"a": "b"},
        "auto",
    )
    assert found.usage is not None
    assert found.usage.total_tokens == found.usage.input_tokens + found.usage.output_tokens
    world.predictor.ranking = [("unknown", 0.9), ("deblur", 0.1)]
    whole = world.ask(top_logprobs=2, include=["message.output_text.logprobs"]).json()
    found = Response.model_validate(whole, strict=True)
    assert found.output_text == "None of the tools fits this."
    (entry,) = whole["output"][0]["content"][0]["logprobs"]
    assert [top["token"] for top in entry["top_logprobs"]] == ["unknown", "deblur"]


def test_every_item_becomes_a_message_of_the_chat() -> None:
    world = Answering()
    given = [
        {"type": "message", "role": "developer", "content": [text("a")]},
        user(text("b"), {"type": "input_image", "image_url": PICTURE, "detail": "high"}),
        {"role": "assistant", "content": "c"},
        {
            "id": "msg_1",
            "type": "message",
            "status": "completed",
            "role": "assistant",
            "content": [
                {"type": "output_text", "text": "d", "annotations": [], "logprobs": []},
                {"type": "refusal", "refusal": "e"},
            ],
        },
        {**CALLED, "id": "fc_1", "status": "completed"},
        {"type": "function_call_output", "call_id": "c1", "output": "f"},
        {**CALLED, "call_id": "c2"},
        {"type": "function_call_output", "call_id": "c2", "output": [text("g")]},
        user(text("h"), {"type": "input_audio", "input_audio": {"data": base64.b64encode(sound()).decode()}}),
    ]
    tools = [{**MEND, "strict": True}, {"type": "function", "name": "deblur"}]
    answer = world.ask(given, tools=tools, tool_choice="required", store=False)
    assert answer.status_code == 200, answer.text
    (chat,) = world.chats
    assert [(message.role, message.model_dump().get("tool_calls") is not None) for message in chat.messages] == [
        ("developer", False),
        ("user", False),
        ("assistant", False),
        ("assistant", False),
        ("assistant", True),
        ("tool", False),
        ("assistant", True),
        ("tool", False),
        ("user", False),
    ]
    assert chat.tools is not None
    assert chat.tools[0].function.name == "mend"
    assert world.predictor.asked[-1].instruction == "h"
    assert world.encoder.asked == [(sound(), "audio")]


def test_a_response_is_gone_on_from() -> None:
    world = Answering()
    first = world.ask(
        [user(text("Sharpen it"), {"type": "input_image", "image_url": PICTURE})], instructions="Be kind."
    )
    (call,) = first.json()["output"]
    made = json.loads(call["arguments"])["image"]
    assert world.chat.store.of("local").open(made)[1] == picture()
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": "It is sharp."}
    second = world.ask([output], previous_response_id=first.json()["id"], instructions="Be brief.").json()
    assert second["output"][0]["content"][0]["text"] == "deblur: It is sharp."
    assert second["previous_response_id"] == first.json()["id"]
    third = world.ask("Again", previous_response_id=second["id"]).json()
    assert json.loads(third["output"][0]["arguments"])["image"] == made
    roles = [message.role for message in world.chats[-1].messages]
    assert roles == ["user", "assistant", "tool", "assistant", "user"], "instructions are not carried over"
    assert "base64" not in world.chats[-1].model_dump_json(), "media are remembered by the ids of artifacts"
    assert world.client.get(f"{PATH}/{third['id']}").json() == third
    assert world.client.delete(f"{PATH}/{third['id']}").json() == {
        "id": third["id"],
        "object": "response",
        "deleted": True,
    }
    assert world.client.get(f"{PATH}/{third['id']}").json()["error"]["code"] == "response_not_found"
    missing = (400, "previous_response_not_found", "previous_response_id")
    assert world.error(previous_response_id=third["id"]) == missing
    unstored = world.ask(store=False).json()
    assert unstored["store"] is False
    assert world.error(previous_response_id=unstored["id"]) == missing


def test_a_response_belongs_to_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    ada, bob = ({"Authorization": f"Bearer {name}-has-a-long-key"} for name in ("ada", "bob"))
    monkeypatch.setenv("TOOLMM_API_KEYS", "ada:ada-has-a-long-key,bob:bob-has-a-long-key")
    world = Answering()
    body = {"model": "toolmm", "input": "Sharpen it"}
    made = world.client.post(PATH, json=body, headers=ada).json()["id"]
    for headers, status in ((ada, 200), (bob, 400)):
        answer = world.client.post(PATH, json={**body, "previous_response_id": made}, headers=headers)
        assert answer.status_code == status
    assert world.client.get(f"{PATH}/{made}", headers=bob).status_code == 404
    assert world.client.delete(f"{PATH}/{made}", headers=bob).status_code == 404
    assert world.client.get(f"{PATH}/{made}", headers=ada).status_code == 200


@pytest.mark.parametrize("args", [{"ingress_replicas": 2}, {"responses_kept": 0}])
def test_where_nothing_can_be_remembered_that_is_said(args: dict[str, Any]) -> None:
    world = Answering(**args)
    assert world.ask().json()["store"] is False
    assert world.error(store=True) == (400, "not_remembered", "store")
    status, code, param = world.error(previous_response_id="resp_1")
    assert (status, code, param) == (400, "previous_response_not_found", "previous_response_id")


def test_a_stream_is_events_of_the_official_types() -> None:
    world = Answering()
    adapter: TypeAdapter[Any] = TypeAdapter(openai.types.responses.ResponseStreamEvent)
    for ranking in (world.predictor.ranking, [("unknown", 0.9), ("deblur", 0.1)]):
        world.predictor.ranking = ranking
        answer = world.ask(stream=True, stream_options={"include_obfuscation": False}, top_logprobs=2)
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = events_of(answer)
        assert [data["sequence_number"] for _, data in events] == list(range(len(events)))
        for event, data in events:
            assert adapter.validate_python(data).type == event
        assert [events[0][0], events[1][0], events[-1][0]] == [
            "response.created",
            "response.in_progress",
            "response.completed",
        ]
        whole = events[-1][1]["response"]
        assert len({data["response"]["id"] for _, data in events if "response" in data}) == 1
        assert world.client.get(f"{PATH}/{whole['id']}").json() == whole
        deltas = "".join(data["delta"] for event, data in events if event.endswith(".delta"))
        (item,) = whole["output"]
        assert deltas == (item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"])


def test_the_agent_answers_whole_and_streamed() -> None:
    world = Answering(writes_dialogues=True)
    whole = world.ask("Hello", model="toolmm-agent")
    found = Response.model_validate(whole.json(), strict=True)
    assert found.output_text == "Hello, I am here."
    assert whole.json()["agent"]["steps"] == []
    events = events_of(world.ask("Hello", agent=True, stream=True))
    adapter: TypeAdapter[Any] = TypeAdapter(openai.types.responses.ResponseStreamEvent)
    assert [adapter.validate_python(data).type for _, data in events] == [event for event, _ in events]
    deltas = [data["delta"] for event, data in events if event == "response.output_text.delta"]
    assert deltas == ["Hello,", " I", " am", " here."], "word by word, as the model writes"
    (added,) = [data["item"]["id"] for event, data in events if event == "response.output_item.added"]
    assert events[-1][1]["response"]["output"][0]["id"] == added
    assert events[-1][1]["response"]["output"][0]["content"][0]["text"] == "Hello, I am here."


def test_an_error_in_a_stream_is_its_last_event() -> None:
    world = Answering(writes_dialogues=True)
    predictor: Any = world.predictor
    let_write(predictor, lambda *_: 1 / 0)
    *_, (event, data) = events_of(world.ask("Hello", agent=True, stream=True))
    assert (event, data["type"], data["code"], data["sequence_number"]) == ("error", "error", "internal_error", 2)
    assert data["error"]["type"] == "server_error"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tools": [{**MEND, "defer_loading": True}]}, "tools.0.defer_loading"),
        ({"tools": [{**MEND, "name": "a b"}]}, "tools.0.name"),
        ({"tools": [{**MEND, "parameters": {"type": "x"}}]}, "tools.0.parameters"),
        ({"tool_choice": {"type": "function", "name": "other"}}, "tool_choice.name"),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice"),
        (
            {"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "x"}]}},
            "tool_choice.tools.0.name",
        ),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"reasoning": {"effort": "low"}}, "reasoning.effort"),
        ({"text": {"format": {"type": "xml"}}}, "text.format"),
        ({"truncation": "disabled"}, "truncation"),
        ({"include": ["reasoning.encrypted_content"]}, "include.0"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_tool_calls": 3}, "max_tool_calls"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"metadata": {"a": 3}}, "metadata.a"),
        ({"metadata": {"a": "x" * 513}}, "metadata.a"),
        ({"metadata": {"a" * 65: ""}}, f"metadata.{'a' * 65}.[key]"),
        (
            {"text": {"format": {"type": "json_schema", "name": "a", "schema": {}, "description": "x" * 10_001}}},
            "text.format.description",
        ),
        ({"nonsense": 1}, "nonsense"),
        ({"given": ""}, "input"),
        ({"given": []}, "input"),
        ({"given": 3}, "input"),
        ({"given": [{"type": "reasoning", "summary": []}]}, "input.0"),
        ({"given": [{"type": "item_reference", "id": "x"}]}, "input.0"),
        ({"given": [{"role": "system", "content": "a"}]}, "input"),
        ({"given": [user(text("a"), {"type": "input_file", "file_id": "f"})]}, "input.0.content.1"),
        ({"given": [user({"type": "input_text"})]}, "input.0.content.0.text"),
        (
            {"given": [user(text("a"), {"type": "input_image", "image_url": "https://e.org/a"})]},
            "input.0.content.1.image_url",
        ),
        ({"given": [user(text("a"), {"type": "input_image", "file_id": "f"})]}, "input.0.content.1.image_url"),
        (
            {"given": [user(text("a"), {"type": "input_audio", "input_audio": {"data": "?"}})]},
            "input.0.content.1.input_audio.data",
        ),
        (
            {"given": [user(text("a")), {"type": "function_call_output", "call_id": "x", "output": ""}]},
            "input.1.call_id",
        ),
        ({"given": [{"role": "user", "content": "a" * 51}]}, "input.0.content"),
        ({"given": "a" * 51}, "input"),
    ],
)
def test_what_is_not_supported_is_refused_by_its_name(fields: dict[str, Any], param: str) -> None:
    status, _, found = Answering().error(**fields)
    assert status in (400, 413)
    assert found == param
