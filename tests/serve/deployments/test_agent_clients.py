"""Other people's agents, unmodified, with tools of their own: LangChain's chat models and OpenAI's Agents SDK."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from datetime import date, time
from typing import Any, Literal

import openai
import pytest
from agents import (
    Agent,
    AgentOutputSchema,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field, HttpUrl, SecretStr
from stand_in_service import CATALOG, Method, World, let_write, serve

from data_pipeline.records.dialogue import render_answer
from model.decode.turn_types import WrittenTurn
from serve.chat.served_models import ServedModels
from serve.engine.messages import Ranking, SelectQuery, ServedModel

set_tracing_disabled(True)  # it would send what agents do to another host


class Weather(BaseModel):
    """Tells the weather of a city."""

    city: str = Field(description="name of the city")
    unit: Literal["celsius", "fahrenheit"]
    day: str | None = None


class Meeting(BaseModel):
    """Arranges a meeting."""

    day: date
    at: time
    link: HttpUrl


ROME = {"city": "Rome", "unit": "celsius", "day": None}


def get_weather(city: str) -> str:
    """Tells the weather of a city."""
    return "It is sunny."


def send_email(recipient: str, subject: str) -> str:
    """Sends an email to a person."""
    raise AssertionError("the wrong tool was called")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A service whose model takes the first tool that is offered, and says what its result was."""
    world = World(max_instruction_chars=500)
    predictor: Any = world.predictor
    model = ServedModel("toolmm", CATALOG, "rev", writes_dialogues=False)
    world.chat.models = world.chat.selector.models = ServedModels([model], predictor)

    def select(queries: Sequence[SelectQuery]) -> list[Ranking]:
        return [Ranking([(query.tools[0], 1.0)], "rev") for query in queries if query.tools]

    predictor.select = Method(select)
    predictor.json = json.dumps(ROME)
    with serve(world) as url:
        yield f"{url}/v1"


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="none on loopback", max_retries=0) as client:
        yield client


def test_openais_client_parses_arguments_into_a_model(client: openai.OpenAI) -> None:
    words, offered = "Weather in Paris, in celsius?", [openai.pydantic_function_tool(Weather)]
    chat = client.chat.completions.parse(model="toolmm", messages=[{"role": "user", "content": words}], tools=offered)
    (call,) = chat.choices[0].message.tool_calls or ()
    found = call.function.parsed_arguments
    assert isinstance(found, Weather)
    assert (found.unit, found.day) == ("celsius", None)
    (item,) = client.responses.parse(model="toolmm", input=words, tools=offered).output  # pyright: ignore[reportArgumentType]
    assert isinstance(item.parsed_arguments, Weather)  # pyright: ignore[reportAttributeAccessIssue]


def test_arguments_of_pydantics_types_are_parsed_or_asked_for_in_words(client: openai.OpenAI) -> None:
    offered = [openai.pydantic_function_tool(Meeting)]
    for words, found in (
        ("Meet on 2026-12-24 at 19:30, see https://example.org/room", ("2026-12-24", "19:30:00", "example.org")),
        ("Meet some day", None),
    ):
        messages: Any = [{"role": "user", "content": words}]
        chat = client.chat.completions.parse(model="toolmm", messages=messages, tools=offered)
        message = chat.choices[0].message
        if found is None:
            assert "Meeting" in (message.content or "")
            assert not message.tool_calls
            continue
        (call,) = message.tool_calls or ()
        meeting = call.function.parsed_arguments
        assert isinstance(meeting, Meeting)
        assert (str(meeting.day), str(meeting.at), meeting.link.host) == found


def test_openais_client_parses_an_answer_into_a_model(client: openai.OpenAI) -> None:
    words = "Weather in Rome, in celsius?"
    messages: Any = [{"role": "user", "content": words}]
    chat = client.chat.completions.parse(model="toolmm", messages=messages, response_format=Weather)
    assert chat.choices[0].message.parsed == Weather.model_validate(ROME)
    with client.chat.completions.stream(model="toolmm", messages=messages, response_format=Weather) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == Weather.model_validate(ROME)
    response = client.responses.parse(model="toolmm", input=words, text_format=Weather)
    assert response.output_parsed == Weather.model_validate(ROME)
    assert response.text is not None
    assert response.text.format is not None
    assert response.text.format.type == "json_schema"
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="toolmm-agent", messages=messages, response_format={"type": "json_object"})
    assert refused.value.param == "response_format"
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model="toolmm-agent", input=words, text={"format": {"type": "json_object"}})
    assert refused.value.param == "text.format"


@pytest.mark.parametrize("uses_responses", [False, True])
def test_langchain_calls_a_tool_and_reads_its_result(url: str, uses_responses: bool) -> None:
    chat: Any = ChatOpenAI(
        model="toolmm", base_url=url, api_key=SecretStr("none"), max_retries=0, use_responses_api=uses_responses
    )
    offering = chat.bind_tools([tool(get_weather), tool(send_email)])
    said: list[Any] = [SystemMessage("Help."), HumanMessage("What is the weather in Paris?")]
    asked = offering.invoke(said)
    (call,) = asked.tool_calls
    assert call["name"] == "get_weather"
    assert "Paris" in call["args"]["city"]
    answer = offering.invoke([*said, asked, ToolMessage(get_weather(**call["args"]), tool_call_id=call["id"])])
    assert answer.tool_calls == []
    assert "It is sunny." in answer.text
    whole = None
    for chunk in offering.stream(said):
        whole = chunk if whole is None else whole + chunk
    assert whole.tool_calls[0]["args"] == call["args"]
    found = chat.with_structured_output(Weather, method="function_calling").invoke("Weather in Rome in celsius?")
    assert isinstance(found, Weather)
    found = chat.with_structured_output(Weather).invoke("Weather in Rome in celsius?")
    assert found == Weather.model_validate(ROME)


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize("model_class", [OpenAIChatCompletionsModel, OpenAIResponsesModel])
def test_openais_agents_run_to_their_end(url: str, model_class: Any, is_streamed: bool) -> None:
    async def run() -> Any:
        async with openai.AsyncOpenAI(base_url=url, api_key="none on loopback", max_retries=0) as client:
            model = model_class(model="toolmm", openai_client=client)
            tools: list[Any] = [function_tool(get_weather), function_tool(send_email)]
            agent = Agent(name="helper", instructions="Help.", model=model, tools=tools)
            if not is_streamed:
                return await Runner.run(agent, "What is the weather in Paris?", max_turns=4)
            result = Runner.run_streamed(agent, "What is the weather in Paris?", max_turns=4)
            assert len([event async for event in result.stream_events()]) > 5
            return result

    result = asyncio.run(run())
    assert "It is sunny." in result.final_output
    kinds = [type(item).__name__ for item in result.new_items]
    assert kinds == ["ToolCallItem", "ToolCallOutputItem", "MessageOutputItem"]


@pytest.mark.parametrize("model_class", [OpenAIChatCompletionsModel, OpenAIResponsesModel])
def test_openais_agents_without_tools_leave_them_to_the_services_agent(model_class: Any) -> None:
    world = World(max_instruction_chars=500)
    let_write(world.predictor, lambda *_: WrittenTurn(render_answer("It is sunny."), 1, 1, ()))

    async def run(url: str) -> Any:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none on loopback", max_retries=0) as client:
            agent = Agent(name="helper", model=model_class(model="toolmm-agent", openai_client=client))
            return await Runner.run(agent, "What is the weather in Paris?", max_turns=1)

    with serve(world) as url:
        assert asyncio.run(run(url)).final_output == "It is sunny."


@pytest.mark.parametrize("model_class", [OpenAIChatCompletionsModel, OpenAIResponsesModel])
def test_openais_agents_end_with_a_typed_answer(url: str, model_class: Any) -> None:
    async def run() -> Any:
        async with openai.AsyncOpenAI(base_url=url, api_key="none on loopback", max_retries=0) as client:
            model = model_class(model="toolmm", openai_client=client)
            agent = Agent(
                name="helper",
                model=model,
                tools=[function_tool(get_weather)],
                output_type=AgentOutputSchema(Weather, False),
            )
            return await Runner.run(agent, "What is the weather in Rome?", max_turns=4)

    result = asyncio.run(run())
    assert result.final_output == Weather.model_validate(ROME)
    assert len(result.new_items) == 3, "after a call"
