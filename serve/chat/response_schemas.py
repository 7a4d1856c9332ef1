"""OpenAI's Responses API as types: what a request may hold and what is answered.

Reference: the official Python client's own types, which the tests hold our answers against. What is not known here is
refused by its name; what cannot change an answer is taken, as in chats (`serve/chat/schemas.py`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, Tag

from serve.chat.decision_answers import DecisionUsage
from serve.chat.items import Input
from serve.chat.messages import RequestPart
from serve.chat.schemas import (
    MAX_TOOLS,
    MAX_TOP_LOGPROBS,
    AllowedTools,
    AllowedToolsChoice,
    FunctionDefinition,
    FunctionName,
    JsonObjectFormat,
    JsonSchema,
    JsonSchemaFormat,
    NamedTool,
    ResponseFormat,
    TextFormat,
    TokenLogprob,
)
from serve.chat.schemas import FunctionTool as ChatFunctionTool
from serve.http.json_body import form, told_by

# as at OpenAI; an answer is kept with them
_MetadataKey = Annotated[str, Field(max_length=64)]
_MetadataValue = Annotated[str, Field(max_length=512)]


class _Strict(RequestPart):
    model_config = ConfigDict(strict=True, extra="forbid")


class FunctionTool(_Strict):
    type: Literal["function"]
    name: str = Field(min_length=1, max_length=256)
    description: str | None = None
    parameters: dict[str, Any] | None = Field(default=None, description="JSON schema of the arguments, an object")
    strict: bool | None = Field(default=None, description="of no effect: arguments always fit their schema")

    def to_chat(self) -> ChatFunctionTool:
        function = FunctionDefinition(name=self.name, description=self.description, parameters=self.parameters)
        return ChatFunctionTool(type="function", function=function)


class NamedFunction(_Strict):
    type: Literal["function"]
    name: str

    def to_chat(self) -> NamedTool:
        return NamedTool(type="function", function=FunctionName(name=self.name))


class AllowedFunctions(_Strict):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[NamedFunction] = Field(min_length=1, max_length=MAX_TOOLS)

    def to_chat(self) -> AllowedToolsChoice:
        allowed = AllowedTools(mode=self.mode, tools=[tool.to_chat() for tool in self.tools])
        return AllowedToolsChoice(type="allowed_tools", allowed_tools=allowed)


WantedFunctions = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag(form("text"))]
    | Annotated[NamedFunction, Tag(form("function"))]
    | Annotated[AllowedFunctions, Tag(form("allowed_tools"))],
    told_by("type", "'none', 'auto', 'required', or an object whose type is 'function' or 'allowed_tools'"),
]


class Reasoning(_Strict):
    """There is none: the tool is chosen at once, and the agent's thoughts are in `agent`."""

    effort: Literal["none"] | None = None
    summary: None = None


class FormedText(_Strict):
    """JSON by a schema, which lies one level higher here than in chats."""

    type: Literal["json_schema"]
    name: str = Field(min_length=1, max_length=64)
    description: str | None = Field(default=None, max_length=10_000)
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = Field(default=None, description="of no effect: an answer always fits its schema")

    def to_chat(self) -> JsonSchemaFormat:
        return JsonSchemaFormat(type="json_schema", json_schema=JsonSchema(name=self.name, schema=self.schema_))


class TextConfig(_Strict):
    format: (
        Annotated[
            Annotated[TextFormat, Tag(form("text"))]
            | Annotated[JsonObjectFormat, Tag(form("json_object"))]
            | Annotated[FormedText, Tag(form("json_schema"))],
            told_by("type", "an object whose type is 'text', 'json_object' or 'json_schema'"),
        ]
        | None
    ) = None
    verbosity: Literal["medium"] | None = None


class ResponseStreamOptions(_Strict):
    include_obfuscation: Literal[False] | None = None


class ResponseRequest(_Strict):
    """Body of `POST /v1/responses`."""

    model: str = Field(min_length=1, max_length=200)
    input: Input
    instructions: str | None = Field(default=None, description="a system message before all others; not remembered")
    tools: list[FunctionTool] | None = Field(
        default=None, max_length=MAX_TOOLS, description="default, and where there are none: the catalogue"
    )
    tool_choice: WantedFunctions | None = None
    parallel_tool_calls: bool | None = Field(
        default=None, description="an answer calls one tool at most, so both are met"
    )
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    max_output_tokens: int | None = Field(default=None, ge=1, description="of words; the name of a tool is never cut")
    previous_response_id: str | None = Field(
        default=None, max_length=200, description="an answer that is to be gone on from"
    )
    store: bool | None = Field(default=None, description="whether the answer is remembered; default: where it can be")
    include: list[Literal["message.output_text.logprobs"]] | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    truncation: Literal["auto"] | None = Field(
        default=None, description="the oldest exchanges go where there are too many"
    )
    temperature: float | None = Field(
        default=None, ge=0, le=2, description="nothing is drawn at random, so of no effect"
    )
    top_p: float | None = Field(default=None, ge=0, le=1, description="as temperature")
    metadata: dict[_MetadataKey, _MetadataValue] | None = Field(
        default=None, max_length=16, description="comes back with the answer"
    )
    background: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None
    user: str | None = Field(default=None, description="of no effect")
    safety_identifier: str | None = Field(default=None, description="of no effect")
    prompt_cache_key: str | None = Field(default=None, description="of no effect")
    agent: bool | None = Field(default=None, description="as in a chat; ours")
    conversation: None = Field(default=None, description="refused: go on from a response, or send the whole input")
    prompt: None = Field(default=None, description="refused: there are no stored prompts")
    max_tool_calls: None = Field(default=None, description="refused: agent_max_steps bounds the agent's calls")
    context_management: None = Field(default=None, description="refused: nothing is summed up")
    moderation: None = Field(default=None, description="refused: nothing is moderated")

    @property
    def chat_format(self) -> ResponseFormat | None:
        """`text.format` as chats have it."""
        wanted = None if self.text is None else self.text.format
        return wanted.to_chat() if isinstance(wanted, FormedText) else wanted

    @property
    def wants_logprobs(self) -> bool:
        return bool(self.include) or self.top_logprobs is not None


class OutputTextPart(BaseModel):
    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[Any] = Field(default=[], max_length=0)
    logprobs: list[TokenLogprob] = []


class MessageItem(BaseModel):
    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    status: Literal["in_progress", "completed", "incomplete"]
    content: list[OutputTextPart]


class FunctionCallItem(BaseModel):
    id: str
    type: Literal["function_call"] = "function_call"
    call_id: str
    name: str
    arguments: str
    status: Literal["in_progress", "completed", "incomplete"]
    logprobs: list[TokenLogprob] = Field(default=[], description="the ranking, where it is wanted; ours")


class IncompleteDetails(BaseModel):
    reason: Literal["max_output_tokens"] = "max_output_tokens"


class ResponseObject(BaseModel):
    """The answer to a request; `agent` is ours: the trace of the agent's loop, in a stream each step as it ends."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: Literal["in_progress", "completed", "incomplete"]
    background: Literal[False] = False
    error: None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: list[MessageItem | FunctionCallItem]
    parallel_tool_calls: bool
    previous_response_id: str | None
    reasoning: dict[str, None] = {"effort": None, "summary": None}
    service_tier: Literal["default"] = "default"
    store: bool
    temperature: float | None
    text: dict[str, Any] = {"format": {"type": "text"}}
    tool_choice: Any
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float | None
    truncation: Literal["auto"] = "auto"
    usage: DecisionUsage | None = None
    agent: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """`agent` and `completed_at` only where there are any."""
        answer = self.model_dump(mode="json")
        for field in ("agent", "completed_at"):
            if answer[field] is None:
                del answer[field]
        return answer


class DeletedResponse(BaseModel):
    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True
