"""OpenAI's chat completions as types: what a request may hold and what is answered.

Reference: the API reference of OpenAI's chat completions and the official Python client's own types, which the tests
hold our answers against. A field that would change the answer and cannot be honoured is refused by its name. Those
that cannot change it are taken and have no effect: answers are not drawn at random, so `seed`, `temperature` and
`top_p` are met whatever they are, and `user`, `metadata` and the like are nobody's business here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, Tag

from serve.chat.messages import FunctionCall, Message, RequestPart
from serve.engine.messages import ServedModel
from serve.http.json_body import form, parse_body, told_by
from serve.http.schemas import RequestError

AGENT_SUFFIX = "-agent"  # of a model name: the same model, in the agent's loop
MAX_TOP_LOGPROBS = 20
MAX_TOOLS = 128
MAX_STOPS = 4  # as at OpenAI

FinishReason = Literal["stop", "length", "tool_calls"]


class FunctionDefinition(RequestPart):
    name: str = Field(min_length=1, max_length=256)
    description: str | None = None
    parameters: dict[str, Any] | None = Field(default=None, description="JSON schema of the arguments, an object")


class FunctionTool(RequestPart):
    type: Literal["function"]
    function: FunctionDefinition


class FunctionName(RequestPart):
    name: str


class NamedTool(RequestPart):
    type: Literal["function"]
    function: FunctionName


class AllowedTools(RequestPart):
    mode: Literal["auto", "required"]
    tools: list[NamedTool] = Field(min_length=1, max_length=MAX_TOOLS)


class AllowedToolsChoice(RequestPart):
    """Choose among some of the tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


WantedTools = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag(form("text"))]
    | Annotated[NamedTool, Tag(form("function"))]
    | Annotated[AllowedToolsChoice, Tag(form("allowed_tools"))],
    told_by("type", "'none', 'auto', 'required', or an object whose type is 'function' or 'allowed_tools'"),
]
Stop = Annotated[
    Annotated[str, Field(min_length=1), Tag(form("text"))]
    | Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=MAX_STOPS), Tag(form("list"))],
    told_by("type", "a string or a list of strings"),
]


class StreamOptions(RequestPart):
    include_usage: bool | None = None


class TextFormat(RequestPart):
    type: Literal["text"]


class JsonObjectFormat(RequestPart):
    type: Literal["json_object"]


class JsonSchema(RequestPart):
    name: str = Field(min_length=1, max_length=64)
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = Field(default=None, description="of no effect: an answer always fits its schema")


class JsonSchemaFormat(RequestPart):
    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[
    Annotated[TextFormat, Tag(form("text"))]
    | Annotated[JsonObjectFormat, Tag(form("json_object"))]
    | Annotated[JsonSchemaFormat, Tag(form("json_schema"))],
    told_by("type", "an object whose type is 'text', 'json_object' or 'json_schema'"),
]


class ChatRequest(RequestPart):
    """Body of `POST /v1/chat/completions`."""

    model: str = Field(min_length=1, max_length=200)
    messages: list[Message] = Field(min_length=1)
    tools: list[FunctionTool] | None = Field(
        default=None, min_length=1, max_length=MAX_TOOLS, description="default: the catalogue"
    )
    tool_choice: WantedTools | None = None
    parallel_tool_calls: bool | None = Field(
        default=None, description="an answer calls one tool at most, so both are met"
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = Field(default=None, description="log-probabilities of the ranked tools, one entry per tool")
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    max_tokens: int | None = Field(default=None, ge=1, description="of words; the name of a tool is never cut")
    max_completion_tokens: int | None = Field(default=None, ge=1, description="OpenAI's newer name of max_tokens")
    stop: Stop | None = Field(default=None, description="an answer in words ends before the first of these")
    n: int | None = Field(default=None, ge=1, le=1)
    seed: int | None = Field(default=None, description="the same request has the same answer whatever it is")
    temperature: float | None = Field(
        default=None, ge=0, le=2, description="nothing is drawn at random, so of no effect"
    )
    top_p: float | None = Field(default=None, ge=0, le=1, description="as temperature")
    response_format: ResponseFormat | None = Field(
        default=None, description="of words: any, or JSON that fits a schema; no agent writes JSON"
    )
    modalities: list[Literal["text"]] | None = Field(default=None, description="words are all that is answered")
    agent: bool | None = Field(
        default=None,
        description=f"run the tools too, until there is an answer; as a model name that ends in {AGENT_SUFFIX}",
    )
    functions: None = Field(default=None, description="deprecated by OpenAI and refused here: use tools")
    function_call: None = Field(default=None, description="deprecated by OpenAI and refused here: use tool_choice")
    audio: None = Field(default=None, description="refused: nothing is spoken")
    logit_bias: None = Field(default=None, description="refused: answers are chosen by names, not by tokens")
    web_search_options: None = Field(default=None, description="refused: nothing is searched")

    @property
    def is_agent(self) -> bool:
        return self.agent is True or (self.agent is None and self.model.endswith(AGENT_SUFFIX))

    @property
    def base_model(self) -> str:
        """The model's name without the agent's suffix."""
        return self.model.removesuffix(AGENT_SUFFIX)

    @property
    def max_answer_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def stops(self) -> tuple[str, ...]:
        """What an answer in words ends before."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def json_schema(self) -> dict[str, Any] | None:
        """What an answer in words must fit; None = nothing."""
        if isinstance(self.response_format, JsonSchemaFormat):
            return self.response_format.json_schema.schema_
        return {"type": "object"} if isinstance(self.response_format, JsonObjectFormat) else None

    @property
    def schema_text(self) -> str:
        """The same as JSON; "" = nothing."""
        return "" if self.json_schema is None else json.dumps(self.json_schema, ensure_ascii=False)

    @property
    def has_usage_chunk(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage is True


def parse_chat_request(body: bytes) -> ChatRequest:
    """Read a request's body; every fault is a `RequestError` (400) that names the field."""
    request = parse_body(ChatRequest, body)
    for field, needed, is_wrong in (
        ("stream_options", "stream", request.stream_options is not None and not request.stream),
        ("top_logprobs", "logprobs", request.top_logprobs is not None and not request.logprobs),
    ):
        if is_wrong:
            raise RequestError(
                f"{field} is given without {needed}; set {needed} to true or leave it out.",
                code="bad_field",
                param=field,
            )
    if request.max_tokens is not None and request.max_completion_tokens is not None:
        raise RequestError(
            "max_tokens and max_completion_tokens are two names of one limit; send one of them.",
            code="bad_field",
            param="max_tokens",
        )
    return request


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(BaseModel):
    """The chosen tool as one token, and the ranking as its alternatives."""

    content: list[TokenLogprob]
    refusal: None = None


class PromptTokensDetails(BaseModel):
    """How many of a prompt's tokens had been read before, in an earlier turn."""

    cached_tokens: int = 0


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails = PromptTokensDetails()

    @classmethod
    def of(cls, prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> Usage:
        return cls(
            prompt_tokens_details=PromptTokensDetails(cached_tokens=cached_tokens),
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            total_tokens=prompt_tokens + completion_tokens,
        )


class AnsweredCall(BaseModel):
    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class AnswerMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    tool_calls: list[AnsweredCall] | None = None


class Choice(BaseModel):
    index: Literal[0] = 0
    message: AnswerMessage
    logprobs: ChoiceLogprobs | None = None
    finish_reason: FinishReason


class ChatCompletion(BaseModel):
    """The answer to a chat request; `agent` is ours: the trace of the agent's loop (`serve/agent/loop.py`)."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice] = Field(min_length=1, max_length=1)
    usage: Usage
    agent: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """As OpenAI writes it: `tool_calls` only where there are any, `agent` only where it ran."""
        answer = self.model_dump(mode="json")
        if self.agent is None:
            del answer["agent"]
        if self.choices[0].message.tool_calls is None:
            del answer["choices"][0]["message"]["tool_calls"]
        return answer


class ModelEntry(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "toolmm"


class ModelList(BaseModel):
    """Answer of `GET /v1/models`."""

    object: Literal["list"] = "list"
    data: list[ModelEntry]


def list_models(models: Iterable[ServedModel], created_s: int) -> ModelList:
    """Every model as it is, and those that were trained on dialogues in the agent's loop as well."""
    names = [
        model.name + suffix
        for model in models
        for suffix in ("", AGENT_SUFFIX)
        if suffix == "" or model.writes_dialogues
    ]
    return ModelList(data=[ModelEntry(id=name, created=created_s) for name in names])
