"""A tool's arguments and results in MCP's forms: media as they are, byte for byte, or by the names of artifacts."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from mcp.types import AudioContent, BlobResourceContents, ContentBlock, EmbeddedResource, ImageContent, TextContent

from serve.agent.tool_reply import ToolResult
from serve.artifact_files import ARTIFACT_ID
from serve.artifacts import CallerArtifacts
from serve.chat.content import ARTIFACT_SCHEME
from serve.http.schemas import RequestError, parse_media_data
from serve.tools.spec import ToolSpec


def build_input_schema(spec: ToolSpec) -> dict[str, Any]:
    """JSON schema of a tool's arguments, as an MCP client gives them: a medium is a string in one of three forms."""
    schema = spec.json_schema()
    media = {
        argument.name: {
            "type": "string",
            "minLength": 1,
            "contentMediaType": f"{argument.kind}/*",
            "description": f"{argument.description} ({argument.kind}: {ARTIFACT_SCHEME}<id> of an earlier result, a "
            "data URL, or the file's bytes in base64)",
        }
        for argument in spec.arguments
        if argument.is_media
    }
    return schema | {"properties": schema["properties"] | media}


def store_arguments(
    spec: ToolSpec, arguments: Mapping[str, Any], store: CallerArtifacts, max_bytes: int
) -> dict[str, Any]:
    """The arguments as `ChatService.invoke` takes them: each medium becomes the id of an artifact. Blocking.

    Args:
        spec: the tool.
        arguments: by `build_input_schema`; what does not fit it is left for the tool to refuse.
        store: where media go that are sent along, of the caller.
        max_bytes: of one medium.

    Raises:
        RequestError: a medium in none of the three forms, or of a kind that the store refuses; `param` names it.
    """
    stored = dict(arguments)
    for argument in spec.arguments:
        value = stored.get(argument.name)
        if argument.is_media and isinstance(value, str):
            try:
                stored[argument.name] = _store_medium(value, argument.kind, store, max_bytes)
            except RequestError as error:
                raise RequestError(
                    f"The argument {argument.name!r}: {error.message}", error.status, error.code, argument.name
                ) from error
    return stored


def _store_medium(text: str, kind: str, store: CallerArtifacts, max_bytes: int) -> str:
    if text.startswith(ARTIFACT_SCHEME):
        return text[len(ARTIFACT_SCHEME) :]
    if ARTIFACT_ID.fullmatch(text):  # as the other routes take it; no medium is as small as these 24 bytes of base64
        return text
    return store.put(parse_media_data(text, max_bytes), kind).id  # a video's sound where the tool takes sounds


def build_content(result: ToolResult, data: bytes | None) -> list[ContentBlock]:
    """A tool's result as MCP's content.

    Args:
        result: what the tool gave.
        data: the bytes of its artifact, or None without one.

    Returns:
        its words, then the artifact's name, by which other tools take it, and the medium: MCP has forms for pictures
        and sounds; a video goes as an embedded resource.
    """
    blocks: list[ContentBlock] = [TextContent(text=result.text)] if result.text.strip() else []
    artifact = result.artifact
    if artifact is not None and data is not None:
        name = f"{ARTIFACT_SCHEME}{artifact.id}"
        blocks.append(TextContent(text=f"{name} ({artifact.media_type}, {artifact.n_bytes} bytes)"))
        text = base64.b64encode(data).decode("ascii")
        match artifact.modality:
            case "image":
                blocks.append(ImageContent(data=text, mime_type=artifact.media_type))
            case "audio":
                blocks.append(AudioContent(data=text, mime_type=artifact.media_type))
            case _:
                resource = BlobResourceContents(uri=name, mime_type=artifact.media_type, blob=text)
                blocks.append(EmbeddedResource(resource=resource))
    return blocks or [TextContent(text="Done.")]
