"""OpenAI's form, as TRL and LLaMA-Factory read it: `messages` of `role` and `content`, with `tool_calls` and `tools`.

    {"messages": [{"role": "user", "content": "Crop the dog in a.png"},
                  {"role": "assistant", "content": null, "tool_calls": [
                    {"id": "1", "type": "function", "function": {"name": "crop", "arguments": "{\\"image\\": ...}"}}]},
                  {"role": "tool", "tool_call_id": "1", "content": "b.png"},
                  {"role": "assistant", "content": "It is in b.png."}],
     "tools": [{"type": "function", "function": {"name": "crop", "description": ..., "parameters": {...}}}]}

TRL's `prompt` and `completion` are the same in two parts. A message's content may be a list of parts; pictures stand
there by their path, or in the row's `images`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data_pipeline.errors import InputError
from data_pipeline.records.schema import Modality
from data_pipeline.sources.chat import Chat, ChatMessage, read_split
from data_pipeline.sources.functions import MEDIA_KEYS, parse_call, parse_functions, parse_list, parse_media

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
_Media = list[tuple[Modality, str]]


def parse_openai(row: Mapping[str, Any]) -> Chat:
    """Read one row.

    Raises:
        InputError: it does not follow the form; equal faults have equal words.
    """
    media: _Media = []
    entries = parse_list(row.get("messages"), "messages")
    for key, role in (("prompt", "user"), ("completion", "assistant")) if not entries else ():
        part = row.get(key)
        entries += [{"role": role, "content": part}] if isinstance(part, str) else parse_list(part, key)
    messages = [_parse_message(entry, media) for entry in entries]
    tools = parse_functions(row.get("tools") or row.get("functions"))
    return Chat(tuple(messages), tools, (*media, *parse_media(row)), read_split(row))


def _parse_message(entry: Any, media: _Media) -> ChatMessage:
    role = entry.get("role") if isinstance(entry, Mapping) else None
    kind = _ROLES.get(role) if isinstance(role, str) else None
    if kind is None:
        raise InputError(f"a message has not one of the roles {', '.join(_ROLES)}")
    text = _parse_content(entry.get("content"), media)
    calls = []
    for call in parse_list(entry.get("tool_calls"), "tool_calls"):
        if not isinstance(call, Mapping):
            raise InputError("a call has no name")
        calls.append(parse_call(call.get("function") or call, call.get("id")))
    if entry.get("function_call"):
        calls.append(parse_call(entry["function_call"]))
    if calls and kind != "assistant":
        raise InputError("a message that is not the assistant's holds a call")
    call_id = entry.get("tool_call_id")
    return ChatMessage(kind, text, tuple(calls), call_id if isinstance(call_id, str) else "")


def _parse_content(content: Any, media: _Media) -> str:
    """The words of a message; its media are appended to `media`."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list) or not all(isinstance(part, Mapping) for part in content):
        raise InputError("the content of a message is neither a text nor a list of parts")
    words = []
    for part in content:
        kind = part.get("type")
        value = part.get(kind) if isinstance(kind, str) else None
        if isinstance(value, Mapping):
            value = value.get("url")
        if kind == "text" and isinstance(value, str):
            words.append(value)
        elif kind in ("image_url", *MEDIA_KEYS):
            if isinstance(value, str):
                media.append((MEDIA_KEYS[kind.removesuffix("_url")], value))
            elif len([key for key in part if part[key] is not None]) > 1:  # {"type": "image"} alone: one of the row's
                raise InputError("a medium is not given by its path; write it to a file and give that")
        else:
            raise InputError("a part of a message is neither a text nor a medium by its path")
    return "\n".join(words)
