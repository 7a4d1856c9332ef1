"""A tool of another's MCP server as a tool of ours: what its server says of it is data, bounded and put on one line."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mcp.types import Tool

from data_pipeline.errors import InputError
from serve.tools.spec import MEDIA_KINDS, Argument, ArgumentKind, ToolOutput, ToolSpec

ID_PREFIX = "mcp/"
MAX_SCHEMA_CHARS = 20_000
MAX_DESCRIPTION_CHARS = 600  # a dialogue's prompt holds several tools
MAX_ARGUMENT_CHARS = 160
MAX_CHOICES = 50
_NAME = re.compile(r"[A-Za-z0-9_./-]{1,128}", re.ASCII)
_ARGUMENT = re.compile(r"[\w.-]{1,64}", re.ASCII)
_KINDS: dict[str, ArgumentKind] = {"string": "text", "number": "number", "integer": "integer"}


def _runs_elsewhere(**_: Any) -> ToolOutput:
    raise AssertionError("a tool of another's server is called through McpServers")


@dataclass(frozen=True)
class RemoteTool(ToolSpec):
    """A tool that an MCP server runs. Its `arguments` are those that a call must have and a dialogue can write.

    Attributes:
        server: the server's name in `mcp_servers`.
        remote_name: what the server calls the tool.
        schema: the server's JSON schema of the arguments; the server checks them by it, this service does not, since
            foreign patterns and references could keep it busy.
        media: arguments that its schema declares as media (`contentMediaType`): name -> modality. They are sent as data
            where a call gives the id of an artifact, and as they are otherwise.
        base64_media: those of them that are to be plain base64 (`contentEncoding`), not data URLs.
        fits_dialogues: whether a dialogue can write all that a call must have.
    """

    server: str = ""
    remote_name: str = ""
    schema: Mapping[str, Any] = field(default_factory=dict)
    media: Mapping[str, str] = field(default_factory=dict)
    base64_media: frozenset[str] = frozenset()
    fits_dialogues: bool = True

    def json_schema(self) -> dict[str, Any]:
        """The server's schema; media that a call must have are ids of artifacts."""
        media = {argument.name: argument.json_schema() for argument in self.arguments if argument.is_media}
        return {**self.schema, "type": "object", "properties": self.schema.get("properties", {}) | media}


def read_tool(server: str, tool: Tool, timeout_s: float) -> RemoteTool:
    """Take over a tool that a server has listed.

    Args:
        server: its name in `mcp_servers`.
        tool: as listed; nothing in it is believed but its name and the form of its arguments.
        timeout_s: wall time of a call.

    Raises:
        InputError: its name or its schema is not one that can be taken over.
    """
    if not _NAME.fullmatch(tool.name):
        raise InputError(f"the name {tool.name[:40]!r} has other characters than letters, digits and _-./")
    schema = tool.input_schema
    try:
        n_chars = len(json.dumps(schema))
    except (RecursionError, ValueError) as error:
        raise InputError(f"the schema of {tool.name} is nested too deeply, or no JSON") from error
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if n_chars > MAX_SCHEMA_CHARS:
        raise InputError(f"the schema of {tool.name} has {n_chars} characters; at most {MAX_SCHEMA_CHARS} are taken")
    if not isinstance(properties, dict) or not isinstance(required, list):
        raise InputError(f"the schema of {tool.name} describes no object")
    if not all(isinstance(name, str) for name in required):
        raise InputError(f"the schema of {tool.name} requires what is no name")
    media = {name: kind for name, part in properties.items() if (kind := _media_kind(part)) is not None}
    arguments = [_read_argument(name, properties.get(name), media.get(name)) for name in dict.fromkeys(required)]
    hints = tool.annotations
    return RemoteTool(
        tool_id=f"{ID_PREFIX}{server}/{tool.name}",
        run=_runs_elsewhere,
        description=one_line(tool.description or tool.title or tool.name, MAX_DESCRIPTION_CHARS),
        arguments=tuple(argument for argument in arguments if argument is not None),
        result="text",
        method="remote",
        timeout_s=timeout_s,
        # a hint of the server's; where it is silent, a call is not made twice
        has_side_effects=hints is None or not (hints.read_only_hint or hints.idempotent_hint),
        server=server,
        remote_name=tool.name,
        schema=schema,
        media=media,
        base64_media=frozenset(name for name in media if properties[name].get("contentEncoding") == "base64"),
        fits_dialogues=None not in arguments,
    )


def one_line(text: str, max_chars: int) -> str:
    """Foreign words on one line, without control characters, cut."""
    words = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return words if len(words) <= max_chars else words[: max_chars - 1] + "…"


def _media_kind(part: Any) -> str | None:
    """The modality of an argument that JSON Schema's `contentMediaType` declares as a medium."""
    if not isinstance(part, dict) or part.get("type") != "string":
        return None
    kind = str(part.get("contentMediaType", "")).partition("/")[0].lower()
    return kind if kind in MEDIA_KINDS else None


def _words_of(part: Any) -> str:
    words = part.get("description") if isinstance(part, dict) else None
    return one_line(words, MAX_ARGUMENT_CHARS) if isinstance(words, str) else ""


def _read_argument(name: str, part: Any, media_kind: str | None) -> Argument | None:
    """An argument as a dialogue writes it; None for objects, lists, yes or no, and what only a reference describes."""
    if not isinstance(part, dict) or not _ARGUMENT.fullmatch(name):
        return None
    words = _words_of(part)
    if media_kind is not None:
        return Argument(name, media_kind, words)  # pyright: ignore[reportArgumentType]
    kind = _KINDS.get(str(part.get("type")))
    if kind is None:
        return None
    if kind == "text":
        choices = part.get("enum", [])
        if not isinstance(choices, list) or len(choices) > MAX_CHOICES:
            return None
        if not all(isinstance(choice, str) and choice == one_line(choice, MAX_ARGUMENT_CHARS) for choice in choices):
            return None
        return Argument(name, kind, words, choices=tuple(choices))
    low, high = (_bound(part.get(key)) for key in ("minimum", "maximum"))
    return Argument(name, kind, words, minimum=low, maximum=high)


def _bound(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) < 1e15 else None
