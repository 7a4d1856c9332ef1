"""OpenAI's chat completions as types: what a request may hold and what is answered.

Reference: the API reference of OpenAI's chat completions and the official Python client's own types, which the tests
hold our answers against. Request fields that this service has no use for (temperature, seed, user, ...) are ignored.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError

from serve.engine.messages import ServedModel
from serve.http.schemas import RequestError

AGENT_SUFFIX = "-agent"  # of a model name: the same model, in the agent's loop
MAX_TOP_LOGPROBS = 20
MAX_TOOLS = 128

FinishReason = Literal["stop", "length", "tool_calls"]


class _RequestModel(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class TextPart(_RequestModel):
    type: Literal["text"]
    text: str


class MediumUrl(_RequestModel):
    url: str = Field(description="data URL (data:image/png;base64,...), artifact:<id>, or http(s) where allowed")


class MediumData(_RequestModel):
    data: str = Field(description="the file's bytes in base64, or artifact:<id>")


class ImagePart(_RequestModel):
    type: Literal["image_url"]
    image_url: MediumUrl


class AudioPart(_RequestModel):
    type: Literal["input_audio"]
    input_audio: MediumData


class VideoUrlPart(_RequestModel):
    type: Literal["video_url"]
    video_url: MediumUrl


class VideoPart(_RequestModel):
    type: Literal["input_video"]
    input_video: MediumData


UserPart = Annotated[TextPart | ImagePart | AudioPart | VideoUrlPart | VideoPart, Field(discriminator="type")]


def _form_of_content(content: Any) -> str:
    return "text" if isinstance(content, str) else "parts"


_Text = Annotated[str, Tag("text")]
_UserContent = Annotated[
    _Text | Annotated[list[UserPart], Field(min_length=1), Tag("parts")], Discriminator(_form_of_content)
]
_TextContent = Annotated[_Text | Annotated[list[TextPart], Tag("parts")], Discriminator(_form_of_content)]


class FunctionCall(_RequestModel):
    name: str
    arguments: str = Field(description="JSON, by the tool's schema")


class ToolCall(_RequestModel):
    id: str
    type: Literal["function"]
    function: FunctionCall


class SystemMessage(_RequestModel):
    role: Literal["system", "developer"]
    content: _TextContent


class UserMessage(_RequestModel):
    role: Literal["user"]
    content: _UserContent


class AssistantMessage(_RequestModel):
    role: Literal["assistant"]
    content: _TextContent | None = None
    tool_calls: list[ToolCall] | None = Field(None, max_length=MAX_TOOLS)


class ToolMessage(_RequestModel):
    role: Literal["tool"]
    content: _TextContent
    tool_call_id: str


Message = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


class FunctionDefinition(_RequestModel):
    name: str = Field(min_length=1, max_length=256)
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="JSON schema of the arguments, an object")


class FunctionTool(_RequestModel):
    type: Literal["function"]
    function: FunctionDefinition


class FunctionName(_RequestModel):
    name: str


class NamedTool(_RequestModel):
    type: Literal["function"]
    function: FunctionName


class StreamOptions(_RequestModel):
    include_usage: bool | None = None


class ChatRequest(_RequestModel):
    """Body of `POST /v1/chat/completions`."""

    model: str = Field(min_length=1, max_length=200)
    messages: list[Message] = Field(min_length=1)
    tools: list[FunctionTool] | None = Field(
        None, min_length=1, max_length=MAX_TOOLS, description="default: the catalogue"
    )
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = Field(None, description="log-probabilities of the ranked tools, one entry per tool")
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    n: Literal[1] | None = None
    agent: bool | None = Field(
        None, description=f"run the tools too, until there is an answer; as a model name that ends in {AGENT_SUFFIX}"
    )
    functions: None = Field(None, description="deprecated by OpenAI and refused here: use tools")
    function_call: None = Field(None, description="deprecated by OpenAI and refused here: use tool_choice")

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
    def has_usage_chunk(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage is True


def parse_chat_request(body: bytes) -> ChatRequest:
    """Read a request's body; every fault is a `RequestError` (400) that names the field."""
    try:
        request = ChatRequest.model_validate_json(body)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
        reason = " ".join(fault["msg"].split())[:300]  # it may quote what was sent
        if fault["type"] == "json_invalid":
            raise RequestError(f"The body is not valid JSON: {reason}.", code="bad_json") from None
        param = _param_of(fault["loc"], body)
        where = f"The field {param!r}" if param else "The body"
        raise RequestError(f"{where} is wrong: {reason}.", code="bad_field", param=param or None) from None
    if request.stream_options is not None and not request.stream:
        raise RequestError(
            "stream_options is given without stream; set stream to true or leave it out.",
            code="bad_field",
            param="stream_options",
        )
    if request.top_logprobs is not None and not request.logprobs:
        raise RequestError(
            "top_logprobs is given without logprobs; set logprobs to true or leave it out.",
            code="bad_field",
            param="top_logprobs",
        )
    return request


def _param_of(loc: Iterable[str | int], body: bytes) -> str:
    """The path of a field as its sender wrote it: pydantic's own path also names the branches of its unions."""
    value: Any = json.loads(body)
    path: list[str] = []
    *inner, last = list(loc) or [""]
    for part in inner:
        if part in value if isinstance(value, dict) else isinstance(value, list) and isinstance(part, int):
            value = value[part]  # pyright: ignore[reportCallIssue, reportArgumentType]
            path.append(str(part))
    if last != "" and (last not in ("text", "parts") or (isinstance(value, dict) and last in value)):
        path.append(str(last))
    return ".".join(path)[:200]


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


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, prompt_tokens: int, completion_tokens: int) -> Usage:
        return cls(
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
