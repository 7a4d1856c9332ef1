"""The tools that a chat request offers, and the arguments of a call made from what the user gave.

The model chooses the tool. Its arguments follow from the tool's JSON schema: a medium is the id of the attached
artifact, a text the user's words, everything else its default.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from data_pipeline.records.catalog import UNKNOWN_TOOL_ID, Tool
from serve.artifacts import Artifact
from serve.chat.content import Conversation
from serve.chat.schemas import ChatRequest, FunctionDefinition, NamedTool
from serve.http.schemas import RequestError
from serve.tools.spec import ToolSpec

ANY_MEDIUM = "any"

MAX_SCHEMA_CHARS = 100_000  # of a request's tools together
_MAX_DEPTH, _MAX_VALUES = 8, 64  # of a schema that arguments are made for
_LARGEST = 1e300
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
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")


@dataclass(frozen=True)
class OfferedTool:
    """A tool that may be chosen.

    Attributes:
        name: what the caller calls it and the model writes: the tool id.
        parameters: JSON schema of its arguments.
        media: which arguments are media, and of which modality: argument name -> "image", "audio", "video" or "any".
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    media: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ToolChoice:
    """What a request lets the model choose from.

    Attributes:
        mode: "none" (no call), "auto" (a call, or none where no tool fits), "required" (a call) or "named".
        tools: all that are offered, in order.
        named: the tool to call where the mode is "named", else "".
        is_catalog: whether the catalogue is offered because the request brought no tools.
    """

    mode: Literal["none", "auto", "required", "named"]
    tools: tuple[OfferedTool, ...]
    named: str = ""
    is_catalog: bool = True

    @property
    def is_open(self) -> bool:
        """Whether the model chooses from its whole catalogue."""
        return self.is_catalog and self.mode != "named"

    def __getitem__(self, name: str) -> OfferedTool:
        return next(tool for tool in self.tools if tool.name == name)


def offer_spec(spec: ToolSpec) -> OfferedTool:
    """A tool that this service can run."""
    media = {argument.name: argument.kind for argument in spec.arguments if argument.is_media}
    return OfferedTool(spec.tool_id, spec.description, spec.json_schema(), media)


def offer_entry(tool: Tool) -> OfferedTool:
    """A catalogue entry that only names a tool: its input's modality is all that is known of its arguments."""
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
        catalog: what is offered where the request brings no tools; a brought tool of the same name is known too, and
            keeps the catalogue's arguments if the request says nothing of them.

    Raises:
        RequestError: two tools of one name, a name that no model could write, a tool chosen that is not offered, or
            too long schemas (413).
    """
    tools = tuple(catalog.values())
    if request.tools is not None:
        brought = [tool.function for tool in request.tools]
        n_chars = len(json.dumps([function.parameters for function in brought]))
        if n_chars > MAX_SCHEMA_CHARS:
            raise RequestError(
                f"The tools' schemas have {n_chars} characters; at most {MAX_SCHEMA_CHARS} are allowed.",
                413,
                "schema_too_large",
                "tools",
            )
        for i, function in enumerate(brought):
            fault = _name_fault(function.name, [other.name for other in brought[:i]])
            if fault:
                raise RequestError(
                    f"The tool name {function.name[:80]!r} {fault}; rename the tool.",
                    code="bad_field",
                    param=f"tools.{i}.function.name",
                )
        tools = tuple(
            catalog[function.name]
            if function.name in catalog and function.parameters is None
            else offer_function(function)
            for function in brought
        )
    is_catalog = request.tools is None
    choice = request.tool_choice
    if isinstance(choice, NamedTool):
        name = choice.function.name
        if name not in [tool.name for tool in tools]:
            raise RequestError(
                f"tool_choice names {name[:80]!r}, which is not among the tools; offer it or choose another.",
                code="tool_not_offered",
                param="tool_choice",
            )
        return ToolChoice("named", tools, name, is_catalog)
    return ToolChoice(choice or "auto", tools, "", is_catalog)


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


def build_arguments(tool: OfferedTool, words: str, artifacts: Sequence[Artifact]) -> str:
    """The arguments of a call as JSON.

    Args:
        tool: what is called.
        words: the user's.
        artifacts: the media that may be meant, likeliest first (`Conversation.artifacts`).

    Returns:
        an object by the tool's schema: optional arguments with their defaults, or left out; a required medium that
        nobody attached is left out too, so that the call says what is missing.
    """
    properties = tool.parameters.get("properties")
    required = dict(_required_properties(tool.parameters))
    left, filler = list(artifacts), _Filler(words)
    values: dict[str, Any] = {}
    for name, schema in properties.items() if isinstance(properties, dict) else ():
        if name in tool.media:
            wanted = tool.media[name]
            found = next((artifact for artifact in left if wanted in (ANY_MEDIUM, artifact.modality)), None)
            if found is not None:
                left.remove(found)
                values[name] = found.id
        elif isinstance(schema, dict) and "default" in schema:
            values[name] = schema["default"]
        elif name in required:
            values[name] = filler.fill(schema)
    return json.dumps(_without_infinities(values), ensure_ascii=False, allow_nan=False)


class _Filler:
    """Values for a schema's required arguments, at most `_MAX_VALUES` of them: schemas come from callers."""

    def __init__(self, words: str) -> None:
        self._words = words
        self._n_left = _MAX_VALUES

    def fill(self, schema: Mapping[str, Any], depth: int = 0) -> Any:
        """A value of the schema's type, the user's words where they fit."""
        self._n_left -= 1
        if self._n_left < 0 or depth > _MAX_DEPTH:
            raise RequestError(
                f"The tool's schema requires more than {_MAX_VALUES} values or nests deeper than {_MAX_DEPTH} levels; "
                "simplify it.",
                code="schema_too_large",
                param="tools",
            )
        for key in ("default", "const"):
            if key in schema:
                return schema[key]
        choices = schema.get("enum")
        if isinstance(choices, list) and choices:
            words = self._words.lower()
            said = [choice for choice in choices if isinstance(choice, str) and choice.lower() in words]
            return max(said, key=len) if said else choices[0]
        kind = schema.get("type", "string")
        if isinstance(kind, list):
            kind = next((entry for entry in kind if entry != "null"), "null")
        match kind:
            case "integer" | "number":
                return self._number(schema, kind == "integer")
            case "boolean":
                return False
            case "array":
                return self._array(schema, depth)
            case "object":
                return {name: self.fill(inner, depth + 1) for name, inner in _required_properties(schema)}
            case "null":
                return None
        longest = schema.get("maxLength")
        return self._words[:longest] if isinstance(longest, int) and longest >= 0 else self._words

    def _array(self, schema: Mapping[str, Any], depth: int) -> list[Any]:
        items, n_items = schema.get("items"), schema.get("minItems", 0)
        if not isinstance(items, dict) or not isinstance(n_items, int):
            return []
        return [self.fill(items, depth + 1) for _ in range(min(n_items, _MAX_VALUES + 1))]

    def _number(self, schema: Mapping[str, Any], is_integer: bool) -> int | float:
        """The first number in the words that lies within the bounds, or else the bound that is nearest to zero."""
        low, high = _bound(schema, "minimum", -_LARGEST), _bound(schema, "maximum", _LARGEST)
        for text in _NUMBER.findall(self._words):
            value = float(text)
            if low <= value <= high and (not is_integer or value == int(value)):
                return int(value) if is_integer else value
        nearest = min(max(0.0, low), high)
        return math.ceil(nearest) if is_integer else nearest


def _required_properties(schema: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(name, schema) of the properties that an object must have; what is malformed is left out."""
    properties, required = schema.get("properties"), schema.get("required")
    if not isinstance(properties, dict) or not isinstance(required, list):
        return []
    names = {name for name in required if isinstance(name, str)}
    return [(name, inner) for name, inner in properties.items() if name in names and isinstance(inner, dict)]


def _bound(schema: Mapping[str, Any], key: str, default: float) -> float:
    value = schema.get(key)
    return float(value) if isinstance(value, int | float) and abs(value) < _LARGEST else default


def _without_infinities(value: Any) -> Any:
    """A caller's defaults may hold NaN and infinities, which are no JSON: null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _without_infinities(inner) for key, inner in value.items()}
    return [_without_infinities(inner) for inner in value] if isinstance(value, list) else value


def _media_modality(name: str, schema: Mapping[str, Any]) -> str | None:
    """Of a string argument whose media type or name says that a medium is meant: "image", "input_video_path"."""
    if schema.get("type", "string") != "string" or "enum" in schema:
        return None
    declared = str(schema.get("contentMediaType", "")).partition("/")[0]
    if declared in ("image", "audio", "video"):
        return declared
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+", name)]
    while len(words) > 1 and words[-1] in _REFERENCE_WORDS:
        words.pop()
    return _MEDIA_WORDS.get(words[-1]) if words else None


def _name_fault(name: str, earlier: Sequence[str]) -> str:
    """What keeps the model's answer form from holding a name (`data_pipeline.records.catalog`); "" for nothing."""
    if any(c.isspace() or c in "{}[],'\"" for c in name):
        return "holds white space or one of { } [ ] , ' \""
    if name == UNKNOWN_TOOL_ID:
        return "stands for no tool at all"
    return "stands there twice" if name in earlier else ""
