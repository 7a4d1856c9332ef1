"""The messages of a chat as OpenAI's clients send them: words, media, calls and what came of them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, Tag

from serve.http.json_body import form, told_by

MAX_CALLS = 128  # of one message


class RequestPart(BaseModel):
    """A part of a request: JSON's own types, nothing converted."""

    model_config = ConfigDict(strict=True, extra="ignore")


class TextPart(RequestPart):
    type: Literal["text"]
    text: str


class RefusalPart(RequestPart):
    """What a model said instead of an answer: words like others."""

    type: Literal["refusal"]
    refusal: str

    @property
    def text(self) -> str:
        return self.refusal


class MediumUrl(RequestPart):
    url: str = Field(description="data URL (data:image/png;base64,...), artifact:<id>, or http(s) where allowed")


class MediumData(RequestPart):
    data: str = Field(description="the file's bytes in base64, or artifact:<id>")


_Address = Annotated[
    Annotated[str, Tag(form("text"))] | Annotated[MediumUrl, Tag(form("object"))],
    told_by(None, "an object with a url, or the url itself"),
]


class ImagePart(RequestPart):
    type: Literal["image_url"]
    image_url: _Address


class AudioPart(RequestPart):
    type: Literal["input_audio"]
    input_audio: MediumData


class VideoUrlPart(RequestPart):
    type: Literal["video_url"]
    video_url: _Address


class VideoPart(RequestPart):
    type: Literal["input_video"]
    input_video: MediumData


MediumPart = ImagePart | AudioPart | VideoUrlPart | VideoPart
UserPart = Annotated[
    Annotated[TextPart, Tag(form("text"))]
    | Annotated[ImagePart, Tag(form("image_url"))]
    | Annotated[AudioPart, Tag(form("input_audio"))]
    | Annotated[VideoUrlPart, Tag(form("video_url"))]
    | Annotated[VideoPart, Tag(form("input_video"))],
    told_by("type", "an object whose type is 'text', 'image_url', 'input_audio', 'video_url' or 'input_video'"),
]
WordsPart = Annotated[
    Annotated[TextPart, Tag(form("text"))] | Annotated[RefusalPart, Tag(form("refusal"))],
    told_by("type", "an object whose type is 'text' or 'refusal'"),
]

_Words = Annotated[str, Tag(form("text"))]
_UserContent = Annotated[
    _Words | Annotated[list[UserPart], Field(min_length=1), Tag(form("list"))],
    told_by(None, "a string or a list of parts"),
]
TextContent = Annotated[
    _Words | Annotated[list[WordsPart], Tag(form("list"))],
    told_by(None, "a string or a list of text parts"),
]


class FunctionCall(RequestPart):
    name: str
    arguments: str = Field(description="JSON, by the tool's schema")


class ToolCall(RequestPart):
    id: str
    type: Literal["function"]
    function: FunctionCall


class SystemMessage(RequestPart):
    role: Literal["system", "developer"]
    content: TextContent | None


class UserMessage(RequestPart):
    role: Literal["user"]
    content: _UserContent


class AssistantMessage(RequestPart):
    role: Literal["assistant"]
    content: TextContent | None = None
    refusal: str | None = Field(default=None, description="stands for the content where there is none")
    tool_calls: list[ToolCall] | None = Field(default=None, max_length=MAX_CALLS)
    function_call: None = Field(default=None, description="deprecated by OpenAI and refused here: use tool_calls")
    audio: None = Field(default=None, description="refused: nothing was spoken here; send the words as content")


class ToolMessage(RequestPart):
    role: Literal["tool"]
    content: TextContent | None
    tool_call_id: str


Message = Annotated[
    Annotated[SystemMessage, Tag(form("system"))]
    | Annotated[SystemMessage, Tag(form("developer"))]
    | Annotated[UserMessage, Tag(form("user"))]
    | Annotated[AssistantMessage, Tag(form("assistant"))]
    | Annotated[ToolMessage, Tag(form("tool"))],
    told_by("role", "an object whose role is 'system', 'developer', 'user', 'assistant' or 'tool'"),
]
