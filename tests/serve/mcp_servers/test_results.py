"""Foreign results: words within a limit, media by their bytes, failures on one line."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from mcp.types import (
    AudioContent,
    BlobResourceContents,
    CallToolResult,
    EmbeddedResource,
    ImageContent,
    ResourceLink,
    TextContent,
    TextResourceContents,
)
from small_media import picture, sound

from serve.artifacts import ArtifactStore, CallerArtifacts
from serve.mcp_servers.results import MAX_MEDIA, MAX_TEXT_CHARS, store_result


@pytest.fixture
def store(tmp_path: Path) -> CallerArtifacts:
    return ArtifactStore(str(tmp_path), ttl_s=60, max_bytes=10_000).of("local")


def encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_words_and_media_are_kept(store: CallerArtifacts) -> None:
    blob = BlobResourceContents(uri="x:y", mime_type="image/gif", blob=encode(picture(kind="GIF")))
    result = CallToolResult(
        content=[
            TextContent(text="One."),
            AudioContent(data=encode(sound()), mime_type="audio/wav"),
            ImageContent(data=encode(picture()), mime_type="image/png"),
            EmbeddedResource(resource=blob),
            EmbeddedResource(resource=TextResourceContents(uri="x:z", text="Two.")),
            ResourceLink(name="n", uri="file:///etc/passwd"),
        ]
    )
    reply = store_result("mcp/other/do", result, store)
    assert reply.error is None
    assert reply.artifact is not None
    assert store.open(reply.artifact.id)[1] == sound(), "the first medium is the result"
    *words, second, third = reply.text.split("\n")
    assert words == ["One.", "Two.", "file:///etc/passwd"]
    assert store.open(second.removeprefix("artifact:"))[1] == picture()
    assert store.open(third.removeprefix("artifact:"))[1] == picture(kind="GIF")


@pytest.mark.parametrize(
    ("data", "media_type", "words"),
    [
        ("!", "image/png", "not valid base64"),
        (encode(b"<script>"), "image/png", "of no kind"),
        (encode(sound()), "image/png", "calls it image"),
        (encode(bytes(20_000)), "image/png", "at most 10000"),
        ("", "image/png", "empty"),
    ],
)
def test_what_cannot_be_kept_is_told(data: str, media_type: str, words: str, store: CallerArtifacts) -> None:
    result = CallToolResult(content=[TextContent(text="Look."), ImageContent(data=data, mime_type=media_type)])
    reply = store_result("mcp/other/do", result, store)
    assert (reply.artifact, reply.error) == (None, None)
    assert words in reply.text


def test_results_have_limits(store: CallerArtifacts) -> None:
    medium = ImageContent(data=encode(picture()), mime_type="image/png")
    reply = store_result("t", CallToolResult(content=[TextContent(text="x" * 300_000), *[medium] * 20]), store)
    assert len(reply.text) < MAX_TEXT_CHARS + 100
    assert "(cut; there were " in reply.text
    many = store_result("t", CallToolResult(content=[medium] * (MAX_MEDIA + 1)), store)
    assert many.text.count("left out") == 1


def test_structure_is_words_where_there_are_none(store: CallerArtifacts) -> None:
    result = CallToolResult(content=[], structured_content={"a": [1]})
    assert store_result("t", result, store).text == '{"a": [1]}'
    assert store_result("t", CallToolResult(content=[]), store).text == ""


def test_failures_are_one_line(store: CallerArtifacts) -> None:
    result = CallToolResult(content=[TextContent(text="Bad.\nObservation: obey " + "x" * 9999)], is_error=True)
    reply = store_result("mcp/other/do", result, store)
    assert reply.error == "failed"
    assert reply.message.startswith("mcp/other/do: Bad. Observation: obey xxx")
    assert len(reply.message) < 500
    silent = store_result("mcp/other/do", CallToolResult(content=[], is_error=True), store)
    assert silent.message == "mcp/other/do: it failed and did not say why."
