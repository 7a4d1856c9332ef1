"""What OpenAI's newer requests hold as `input`, as the messages of a chat: both are read by one code from there on.

`input` is a text or a list of items: messages with parts of other names than a chat's, calls and their outputs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Literal

from pydantic import Field, Tag

from serve.chat.messages import (
    AssistantMessage,
    AudioPart,
    FunctionCall,
    ImagePart,
    MediumData,
    Message,
    RefusalPart,
    RequestPart,
    SystemMessage,
    TextPart,
    ToolCall,
    ToolMessage,
    UserMessage,
    UserPart,
    VideoPart,
    WordsPart,
)
from serve.http.json_body import form, told_by
from serve.http.schemas import RequestError


class InputText(RequestPart):
    type: Literal["input_text"]
    text: str

    def to_part(self) -> TextPart:
        return TextPart(type="text", text=self.text)


class InputImage(RequestPart):
    type: Literal["input_image"]
    image_url: str = Field(description="data URL, artifact:<id>, or http(s) where allowed")
    file_id: None = Field(default=None, description="refused: there are no files here; upload an artifact")

    def to_part(self) -> ImagePart:
        return ImagePart(type="image_url", image_url=self.image_url)


class InputAudio(RequestPart):
    type: Literal["input_audio"]
    input_audio: MediumData

    def to_part(self) -> AudioPart:
        return AudioPart(type="input_audio", input_audio=self.input_audio)


class InputVideo(RequestPart):
    """Ours: OpenAI's models see no videos."""

    type: Literal["input_video"]
    input_video: MediumData

    def to_part(self) -> VideoPart:
        return VideoPart(type="input_video", input_video=self.input_video)


class InputJson(RequestPart):
    type: Literal["input_json"]
    data: dict[str, Any] | list[dict[str, Any]]

    def to_part(self) -> TextPart:
        return TextPart(type="text", text=json.dumps(self.data, ensure_ascii=False))


class OutputText(RequestPart):
    type: Literal["output_text"]
    text: str

    def to_part(self) -> TextPart:
        return TextPart(type="text", text=self.text)


class OutputRefusal(RequestPart):
    type: Literal["refusal"]
    refusal: str

    def to_part(self) -> RefusalPart:
        return RefusalPart(type="refusal", refusal=self.refusal)


_Words = Annotated[str, Tag(form("text"))]
_LIST = Tag(form("list"))
_InputText = Annotated[InputText, Tag(form("input_text"))]
_InputPart = Annotated[
    _InputText
    | Annotated[InputImage, Tag(form("input_image"))]
    | Annotated[InputAudio, Tag(form("input_audio"))]
    | Annotated[InputVideo, Tag(form("input_video"))]
    | Annotated[InputJson, Tag(form("input_json"))],
    told_by(
        "type",
        "an object whose type is 'input_text', 'input_image', 'input_audio', 'input_video' or 'input_json'",
    ),
]
WordsInput = Annotated[
    _InputText | Annotated[InputJson, Tag(form("input_json"))],
    told_by("type", "an object whose type is 'input_text' or 'input_json'"),
]
_OutputPart = Annotated[
    Annotated[OutputText, Tag(form("output_text"))] | Annotated[OutputRefusal, Tag(form("refusal"))],
    told_by("type", "an object whose type is 'output_text' or 'refusal'"),
]
_PARTS = told_by(None, "a string or a list of parts")
WordsContent = Annotated[_Words | Annotated[list[WordsInput], _LIST], _PARTS]


class UserItem(RequestPart):
    type: Literal["message"] = "message"
    role: Literal["user"]
    content: Annotated[_Words | Annotated[list[_InputPart], Field(min_length=1), _LIST], _PARTS]

    def to_message(self) -> UserMessage:
        parts: str | list[UserPart] = (
            self.content if isinstance(self.content, str) else [part.to_part() for part in self.content]
        )
        return UserMessage(role="user", content=parts)


class SystemItem(RequestPart):
    type: Literal["message"] = "message"
    role: Literal["system", "developer"]
    content: WordsContent

    def to_message(self) -> SystemMessage:
        return SystemMessage(role=self.role, content=_to_words(self.content))


class AssistantItem(RequestPart):
    """An earlier answer, as it was given or as its words alone."""

    type: Literal["message"] = "message"
    role: Literal["assistant"]
    content: Annotated[_Words | Annotated[list[_OutputPart], _LIST], _PARTS]

    def to_message(self) -> AssistantMessage:
        return AssistantMessage(role="assistant", content=_to_words(self.content))


class CallItem(RequestPart):
    """A call of an earlier answer."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str

    def to_message(self) -> AssistantMessage:
        function = FunctionCall(name=self.name, arguments=self.arguments)
        call = ToolCall(id=self.call_id, type="function", function=function)
        return AssistantMessage(role="assistant", tool_calls=[call])


class CallOutputItem(RequestPart):
    """What came of a call."""

    type: Literal["function_call_output"]
    call_id: str
    output: WordsContent

    def to_message(self) -> ToolMessage:
        return ToolMessage(role="tool", content=_to_words(self.output), tool_call_id=self.call_id)


def _kind(item: dict[str, Any]) -> str:
    """A message may leave its type out."""
    kind = item.get("type", "message")
    return str(item.get("role") if kind == "message" else kind)


_ROLE_OF_USER = Annotated[UserItem, Tag(form("user"))]
UserInput = Annotated[
    _Words
    | Annotated[
        list[Annotated[_ROLE_OF_USER, told_by(_kind, "a message whose role is 'user'; nothing else is weighed here")]],
        Field(min_length=1),
        _LIST,
    ],
    told_by(None, "a string or a list of messages"),
]
Item = Annotated[
    _ROLE_OF_USER
    | Annotated[SystemItem, Tag(form("system"))]
    | Annotated[SystemItem, Tag(form("developer"))]
    | Annotated[AssistantItem, Tag(form("assistant"))]
    | Annotated[CallItem, Tag(form("function_call"))]
    | Annotated[CallOutputItem, Tag(form("function_call_output"))],
    told_by(
        _kind,
        "a message whose role is 'user', 'assistant', 'system' or 'developer', or an object whose type is "
        "'function_call' or 'function_call_output'",
    ),
]
Input = Annotated[
    _Words | Annotated[list[Item], Field(min_length=1), _LIST], told_by(None, "a string or a list of items")
]


def join_words(content: str | Sequence[InputText | InputJson]) -> str:
    """Words and JSON as one text."""
    return content if isinstance(content, str) else "\n".join(part.to_part().text for part in content)


def _to_words(content: str | Sequence[Any]) -> str | list[WordsPart]:
    return content if isinstance(content, str) else [part.to_part() for part in content]


def to_messages(given: str | Sequence[Any]) -> tuple[list[Message], list[str]]:
    """`input` as a chat's messages, and where in the request each of them stands."""
    if isinstance(given, str):
        return [UserMessage(role="user", content=given)], ["input"]
    return [item.to_message() for item in given], [f"input.{i}" for i in range(len(given))]


@contextmanager
def told_as(places: Sequence[str]) -> Iterator[None]:
    """Lets errors of a chat name the fields of the request that the chat was made from.

    Args:
        places: where in the request each message stands: "input.3", or a field that a whole message was made of.
    """
    try:
        yield
    except RequestError as error:
        raise RequestError(error.message, error.status, error.code, _rename(error.param, places)) from None


def _rename(param: str | None, places: Sequence[str]) -> str | None:
    if param is None:
        return None
    message = re.fullmatch(r"messages(?:\.(\d+)\.(.*))?", param)
    if message is None:
        renamed = param.replace(".function", "").replace(".allowed_tools", "")
        return "text.format" if renamed == "response_format" else renamed
    if message[1] is None:
        return "input"
    place, field = places[int(message[1])], message[2]
    if "." not in place:
        return place
    return f"{place}.{field.replace('tool_call_id', 'call_id')}"
