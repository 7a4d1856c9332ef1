"""What another's tool gave, as a result of ours: words within a limit, media in the artifact store."""

from __future__ import annotations

import base64
import binascii
import json

from mcp.types import (
    AudioContent,
    BlobResourceContents,
    CallToolResult,
    EmbeddedResource,
    ImageContent,
    ResourceLink,
    TextContent,
)

from serve.agent.tool_reply import ToolReply
from serve.artifacts import Artifact, CallerArtifacts
from serve.http.schemas import RequestError
from serve.mcp_servers.tools import one_line

MAX_TEXT_CHARS = 100_000  # as of our own tools
MAX_MEDIA = 8
MAX_FAULT_CHARS = 400


def store_result(tool_id: str, result: CallToolResult, store: CallerArtifacts) -> ToolReply:
    """Take over a result. Blocking.

    Args:
        tool_id: what failed, for the words of an error.
        result: what the server answered; what its media are, their bytes tell.
        store: where they go, of the caller.

    Returns:
        all its words and the first medium; further ones are named in the words, and so is what could not be kept. An
        error where the tool says that it failed, or where nothing could be kept.
    """
    words: list[str] = []
    media: list[Artifact] = []
    for block in result.content:
        match block:
            case TextContent():
                words.append(block.text)
            case ImageContent() | AudioContent():
                _keep(block.data, block.mime_type, media, words, store)
            case EmbeddedResource(resource=BlobResourceContents() as resource):
                _keep(resource.blob, resource.mime_type or "", media, words, store)
            case EmbeddedResource():
                words.append(block.resource.text)  # pyright: ignore[reportAttributeAccessIssue]
            case ResourceLink():
                words.append(block.uri)
    if not words and not media and result.structured_content is not None:
        words.append(json.dumps(result.structured_content))
    words += [f"artifact:{artifact.id}" for artifact in media[1:]]
    text = "\n".join(words)
    if result.is_error:
        fault = one_line(text, MAX_FAULT_CHARS) or "it failed and did not say why."
        return ToolReply(error="failed", message=f"{tool_id}: {fault}")
    if len(text) > MAX_TEXT_CHARS:
        text = text[:MAX_TEXT_CHARS] + f"\n(cut; there were {len(text)} characters)"
    return ToolReply(text, media[0] if media else None)


def _keep(text: str, media_type: str, media: list[Artifact], words: list[str], store: CallerArtifacts) -> None:
    """Store a medium; where it cannot be kept, the words say so."""
    if len(media) == MAX_MEDIA:
        words.append(f"(A further medium was left out: {MAX_MEDIA} are kept.)")
        return
    try:
        media.append(store.put(base64.b64decode(text, validate=True), media_type))
    except binascii.Error:
        words.append("(A medium was left out: it is not valid base64.)")
    except RequestError as error:
        words.append(f"(A medium was left out: {error.message})")
