"""The tools that a chat request offers, and which of their arguments are media."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from data_pipeline.errors import InputError
from data_pipeline.records.catalog import UNKNOWN_TOOL_ID, Tool
from serve.artifacts import Artifact
from serve.chat.arguments import ANY_MEDIUM
from serve.chat.content import Conversation
from serve.chat.schema_check import check_schema
from serve.chat.schemas import AllowedToolsChoice, ChatRequest, FunctionDefinition, NamedTool
from serve.http.schemas import RequestError
from serve.tools.spec import ToolSpec

logger = logging.getLogger(__name__)

MAX_SCHEMA_CHARS = 100_000  # of a request's tools together, descriptions included
_MEDIA_WORDS = {
    "image": "image",
    "img": "image",
    "picture": "image",
    "photo": "image",
    "audio": "audio",
    "sound": "audio",
    "speech": "audio",
    "recording": "audio",
    "video": "video",
    "clip": "video",
    "movie": "video",
    "file": ANY_MEDIUM,
    "media": ANY_MEDIUM,
    "medium": ANY_MEDIUM,
    "artifact": ANY_MEDIUM,
}
_REFERENCE_WORDS = {"path", "url", "uri", "id", "file", "data", "input"}


@dataclass(frozen=True)
class OfferedTool:
    """A tool that may be chosen.

    Attributes:
        name: what the model writes: the tool id.
        parameters: JSON schema of its arguments.
        media: which arguments are media, and of which modality: argument name -> "image", "audio", "video" or "any".
        called: what the caller calls it, where that is another name (`serve/tools/names.py`).
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    media: Mapping[str, str] = field(default_factory=dict)
    called: str = ""

    @property
    def client_name(self) -> str:
        return self.called or self.name


@dataclass(frozen=True)
class ToolChoice:
    """What a request lets the model choose from.

    Attributes:
        mode: "none" (no call), "auto" (a call, or none where no tool fits), "required" (a call) or "named".
        tools: all that are offered, in order.
        named: the name of the tool to call where the mode is "named", else "".
        is_catalog: whether the catalogue is offered because the request brought no tools.
        is_part: whether the request allows only some of what it could choose from; `tools` are those.
    """

    mode: Literal["none", "auto", "required", "named"]
    tools: tuple[OfferedTool, ...]
    named: str = ""
    is_catalog: bool = True
    is_part: bool = False

    @property
    def is_open(self) -> bool:
        """Whether the model chooses from its whole catalogue."""
        return self.is_catalog and not self.is_part and self.mode != "named"

    @property
    def is_own_choice(self) -> bool:
        """Whether the model chooses among functions that the request brought."""
        return not self.is_catalog and self.mode in ("auto", "required") and bool(self.tools)

    def __getitem__(self, name: str) -> OfferedTool:
        return next(tool for tool in self.tools if tool.name == name)


@dataclass(frozen=True)
class ModelTools:
    """What a bundle's model chooses from, by id: in a selection and in the agent's loop."""

    revision: str
    selectable: dict[str, OfferedTool]
    callable: dict[str, OfferedTool]


def offer_spec(spec: ToolSpec) -> OfferedTool:
    """A tool that this service can run."""
    media = {argument.name: argument.kind for argument in spec.arguments if argument.is_media}
    return OfferedTool(spec.tool_id, spec.description, spec.json_schema(), media)


def offer_entry(tool: Tool) -> OfferedTool:
    """A tool that only the catalogue tells of: by its schema, or, where it has none that arguments can be made for, by
    what its input's modality says of them."""
    if tool.parameters:
        try:
            check_schema(tool.parameters)
        except InputError as error:
            logger.info("tool=%s problem=its schema %s", tool.tool_id, error)
        else:
            known = FunctionDefinition(name=tool.tool_id, description=tool.description, parameters=tool.parameters)
            return offer_function(known)
    modality = tool.input_modality
    properties: dict[str, Any] = {"text": {"type": "string", "description": "what is wanted, in words"}}
    media = {modality: modality} if modality in ("image", "audio", "video") else {}
    for name in media:
        properties = {name: {"type": "string", "description": f"id of an artifact with {name}"}, **properties}
    schema = {"type": "object", "properties": properties, "required": list(media) or ["text"]}
    return OfferedTool(tool.tool_id, tool.description, {**schema, "additionalProperties": False}, media)


def offer_function(function: FunctionDefinition) -> OfferedTool:
    """A caller's own tool; which of its string arguments are media, their names tell."""
    parameters = function.parameters or {}
    properties = parameters.get("properties")
    media = {}
    for name, schema in properties.items() if isinstance(properties, dict) else ():
        modality = _media_modality(name, schema) if isinstance(schema, dict) else None
        if modality is not None:
            media[name] = modality
    return OfferedTool(function.name, function.description or "", parameters, media)


def read_tool_choice(request: ChatRequest, catalog: Mapping[str, OfferedTool]) -> ToolChoice:
    """The tools of a request and what it wants of them.

    Args:
        request: the chat.
        catalog: what is offered where the request brings no tools, by id; a brought tool that is called like one of
            them, by its id or by the name that clients get, is that one, and keeps the catalogue's arguments if the
            request says nothing of them.

    Raises:
        RequestError: two tools of one name, a name that no model could write, a schema that no arguments can be made
            for, a tool chosen that is not offered, or too long schemas (413).
    """
    tools = tuple(catalog.values())
    known = {tool.client_name: tool for tool in tools} | dict(catalog)
    if request.tools is not None:
        brought = [tool.function for tool in request.tools]
        n_chars = len(json.dumps([[function.description, function.parameters] for function in brought]))
        if n_chars > MAX_SCHEMA_CHARS:
            raise RequestError(
                f"The tools' descriptions and schemas have {n_chars} characters; at most {MAX_SCHEMA_CHARS} are "
                "allowed.",
                413,
                "schema_too_large",
                "tools",
            )
        names = [known[function.name].name if function.name in known else function.name for function in brought]
        for i, function in enumerate(brought):
            fault = _name_fault(names[i], names[:i])
            if fault:
                raise RequestError(
                    f"The tool name {function.name[:80]!r} {fault}; rename the tool.",
                    code="bad_field",
                    param=f"tools.{i}.function.name",
                )
            try:
                check_schema(function.parameters or {})
            except InputError as error:
                raise RequestError(
                    f"The schema of the tool {function.name[:80]!r} {error}.",
                    code="bad_schema",
                    param=f"tools.{i}.function.parameters",
                ) from None
        tools = tuple(_offer_brought(function, known.get(function.name)) for function in brought)
    is_catalog = request.tools is None
    choice = request.tool_choice
    if isinstance(choice, NamedTool):
        named = _find_offered(choice, tools, "tool_choice.function.name")
        return ToolChoice("named", tools, named.name, is_catalog)
    if isinstance(choice, AllowedToolsChoice):
        names = {
            _find_offered(allowed, tools, f"tool_choice.allowed_tools.tools.{i}.function.name").name
            for i, allowed in enumerate(choice.allowed_tools.tools)
        }
        kept = tuple(tool for tool in tools if tool.name in names)
        return ToolChoice(choice.allowed_tools.mode, kept, "", is_catalog, is_part=True)
    return ToolChoice(choice or "auto", tools, "", is_catalog)


def _offer_brought(function: FunctionDefinition, ours: OfferedTool | None) -> OfferedTool:
    """A tool of a request, under the name that it has there, which may be one of ours."""
    if ours is None:
        return offer_function(function)
    offered = ours if function.parameters is None else replace(offer_function(function), name=ours.name)
    return offered if offered.client_name == function.name else replace(offered, called=function.name)


def _find_offered(wanted: NamedTool, tools: Sequence[OfferedTool], param: str) -> OfferedTool:
    name = wanted.function.name
    found = [tool for tool in tools if name in (tool.name, tool.client_name)]
    if not found:
        raise RequestError(
            f"tool_choice names {name[:80]!r}, which is not among the tools; offer it or choose another.",
            code="tool_not_offered",
            param=param,
        )
    return found[0]


def selection_artifact(conversation: Conversation) -> Artifact | None:
    """The one medium that the model sees when it chooses a tool.

    Raises:
        RequestError: the last message has more than one.
    """
    n_media = len(conversation.turns[conversation.last_user].media)
    if n_media > 1:
        raise RequestError(
            f"The last message has {n_media} media; a tool is chosen for one: send one, or use the agent.",
            code="too_many_media",
            param=f"messages.{conversation.last_user}.content",
        )
    return next(iter(conversation.artifacts), None)


def _media_modality(name: str, schema: Mapping[str, Any]) -> str | None:
    """Of a string argument whose media type or name says that a medium is meant: "image", "input_video_path"."""
    branches = [branch for key in ("anyOf", "oneOf") for branch in schema.get(key) or () if isinstance(branch, dict)]
    kinds = [kind for part in (schema, *branches) for kind in _as_list(part.get("type")) if kind != "null"]
    if any(kind != "string" for kind in kinds) or any("enum" in part for part in (schema, *branches)):
        return None
    declared = str(schema.get("contentMediaType", "")).partition("/")[0]
    if declared in ("image", "audio", "video"):
        return declared
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+", name)]
    while len(words) > 1 and words[-1] in _REFERENCE_WORDS:
        words.pop()
    return _MEDIA_WORDS.get(words[-1]) if words else None


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _name_fault(name: str, earlier: Sequence[str]) -> str:
    """What keeps the model's answer form from holding a name (`data_pipeline.records.catalog`); "" for nothing."""
    if any(c.isspace() or c in "{}[],'\"" for c in name):
        return "holds white space or one of { } [ ] , ' \""
    if name == UNKNOWN_TOOL_ID:
        return "stands for no tool at all"
    return "stands there twice" if name in earlier else ""
