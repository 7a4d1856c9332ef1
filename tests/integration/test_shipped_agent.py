"""The agent that comes with the project: its adapter on a real language model, asked through OpenAI's client."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel

from data_pipeline.errors import InputError
from model.llm.gguf import convert_backbone
from tests.integration.serve_command import PROJECT, serving
from tests.measurements.callers_texts import call

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm_python")]

BUNDLE = PROJECT / "model" / "weights" / "agent_smollm2"
PICTURE = PROJECT.parent / "shared" / "media" / "example-1.jpg"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    if not PICTURE.is_file():
        pytest.skip("no real picture beside the project")
    try:
        convert_backbone("smollm2_135m", PROJECT / "runs" / "backbones")
    except InputError as error:
        pytest.skip(f"the language model is not here: {error}")
    with serving(BUNDLE, tmp_path_factory.mktemp("artifacts")) as served:
        yield openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", timeout=300)


def ask(client: openai.OpenAI, words: str, has_picture: bool) -> tuple[list[dict[str, Any]], str]:
    """The agent's steps and its answer."""
    content: list[dict[str, Any]] = [{"type": "text", "text": words}]
    if has_picture:
        data = base64.b64encode(PICTURE.read_bytes()).decode()
        content.append({"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}})
    model = next(model.id for model in client.models.list() if model.id.endswith("-agent"))
    answer = client.chat.completions.create(model=model, messages=[{"role": "user", "content": content}])  # pyright: ignore
    extra = answer.model_extra or {}
    return extra["agent"]["steps"], answer.choices[0].message.content or ""


def test_two_tools_run_one_after_the_other_on_a_users_picture(client: openai.OpenAI) -> None:
    steps, answer = ask(client, "Draw the edges of this picture, then find its size.", has_picture=True)
    assert [step["error"] for step in steps] == [None, None]
    assert "edge" in steps[0]["tool_id"]
    assert steps[1]["tool_id"] == "local/measure-picture"
    assert steps[1]["arguments"]["image"] == steps[0]["artifact"]["id"], "the second works on what the first made"
    assert "pixels" in answer


def test_small_talk_needs_no_tool(client: openai.OpenAI) -> None:
    steps, answer = ask(client, "Hello!", has_picture=False)
    assert steps == []
    assert answer


def test_what_a_request_needs_and_did_not_bring_is_asked_for(client: openai.OpenAI) -> None:
    """More of such requests, and what the rule does to dialogues: tests/measurements/missing_media.py."""
    for words, lacking in (
        ("Draw the edges of this picture", "picture"),
        ("Remove the background noise from my recording.", "sound"),
        ("Save the key frames of this video.", "video"),
    ):
        steps, answer = ask(client, words, has_picture=False)
        assert steps == []
        assert answer == f"Please attach a {lacking}: I need one for this."
    for words in ("hi", "What can you do?"):
        assert "attach" not in ask(client, words, has_picture=False)[1]
    model: Any = "toolmm-agent"
    response = client.responses.create(model=model, input="Draw the edges of this picture")
    assert response.output_text == "Please attach a picture: I need one for this."
    with client.responses.stream(model=model, input="Draw the edges of this picture") as stream:
        said = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
    assert said == response.output_text
    messages: Any = [{"role": "user", "content": "Draw the edges of this picture"}]
    chunks = client.chat.completions.create(model=model, messages=messages, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == response.output_text


def test_a_call_is_never_made_twice(client: openai.OpenAI) -> None:
    steps, _ = ask(client, "Sharpen this photo, please.", has_picture=True)
    calls = [(step["tool_id"], json.dumps(step["arguments"])) for step in steps]
    assert len(set(calls)) == len(calls)
    assert calls


def test_a_callers_function_gets_the_part_of_the_words_that_it_asks_for(client: openai.OpenAI) -> None:
    for words, (argument, about), value in (
        ("What is the weather in Paris?", ("city", "Name of the city"), "Paris"),
        ("Show me the lyrics of Bohemian Rhapsody", ("title", "Song title"), "Bohemian Rhapsody"),
        ("What happened to ticket TCK-99812?", ("ticket_id", "Id of the ticket"), "TCK-99812"),
    ):
        request = ("look_up", "Looks it up", {argument: about}, words, [value])
        assert call(client, "toolmm", request) == {argument: value}


class Person(BaseModel):
    name: str
    age: int
    city: str


class Mood(BaseModel):
    mood: Literal["positive", "negative"]


def test_an_answer_is_what_the_words_say_in_the_callers_form(client: openai.OpenAI) -> None:
    def ask(words: str, form: type[BaseModel]) -> BaseModel | None:
        messages: Any = [{"role": "user", "content": words}]
        parsed = client.chat.completions.parse(model="toolmm", messages=messages, response_format=form)
        return parsed.choices[0].message.parsed

    words = "Maria Lopez, 41, moved to Madrid last year."
    assert ask(words, Person) == Person(name="Maria Lopez", age=41, city="Madrid")
    assert ask("I love this phone, the camera is superb!", Mood) == Mood(mood="positive")


def test_the_bundle_is_small_and_names_no_machine() -> None:
    assert sum(file.stat().st_size for file in BUNDLE.iterdir()) < 6.5 * 2**20
    assert json.loads((BUNDLE / "bundle.json").read_text())["backbone"] == "smollm2_135m"
    for file in BUNDLE.glob("*.json*"):
        assert "/tmp" not in (text := file.read_text())
        assert "/home" not in text
