"""Media into and out of MCP's forms, byte for byte."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mcp.types import AudioContent, BlobResourceContents, EmbeddedResource, ImageContent, TextContent
from small_media import picture, sound

from serve.agent.tool_reply import ToolResult
from serve.artifacts import ArtifactStore, CallerArtifacts
from serve.http.schemas import RequestError
from serve.mcp.content import build_content, build_input_schema, store_arguments
from serve.tools.all_tools import load_tools
from serve.tools.spec import Argument, ToolOutput, ToolSpec

MAX_BYTES = 100_000


def _look(**_: Any) -> ToolOutput:
    return ToolOutput("seen")


SPEC = ToolSpec(
    "test/look",
    _look,
    "Looks.",
    (
        Argument("image", "image", "what to look at"),
        Argument("audio", "audio", "what to hear", default=""),
        Argument("words", "text", "what to say", default="-"),
    ),
    "text",
)


@pytest.fixture
def store(tmp_path: Path) -> CallerArtifacts:
    return ArtifactStore(str(tmp_path), ttl_s=60, max_bytes=MAX_BYTES).of("local")


def test_schemas_tell_the_forms_of_a_medium() -> None:
    own = SPEC.json_schema()
    schema = build_input_schema(SPEC)
    assert schema["properties"]["words"] == own["properties"]["words"]
    assert schema["required"] == ["image"]
    image = schema["properties"]["image"]
    assert "maxLength" not in image, "base64 is long"
    for form in ("artifact:<id>", "data URL", "base64"):
        assert form in image["description"]
    for spec in load_tools().values():
        assert build_input_schema(spec).keys() == spec.json_schema().keys()


@pytest.mark.parametrize(
    "write",
    [
        lambda data: base64.b64encode(data).decode(),
        lambda data: "data:image/png;base64," + base64.b64encode(data).decode(),
        lambda data: "data:application/octet-stream;base64," + base64.b64encode(data).decode(),
    ],
)
def test_media_that_come_along_are_stored_as_they_are(write: Callable[[bytes], str], store: CallerArtifacts) -> None:
    arguments = {"image": write(picture()), "audio": write(sound()), "words": "artifact:x", "other": 1}
    stored = store_arguments(SPEC, arguments, store, MAX_BYTES)
    assert store.open(stored.pop("image"))[1] == picture()
    assert store.open(stored.pop("audio"))[1] == sound()
    assert stored == {"words": "artifact:x", "other": 1}, "what is no medium is left alone"


def test_artifacts_are_named(store: CallerArtifacts) -> None:
    artifact = store.put(picture())
    for name in (artifact.id, f"artifact:{artifact.id}"):
        assert store_arguments(SPEC, {"image": name}, store, MAX_BYTES) == {"image": artifact.id}


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ("x!", "bad_base64"),
        ("data:image/png,x", "bad_base64"),
        ("http://169.254.169.254/", "url_not_allowed"),
        ("file:///etc/passwd", "url_not_allowed"),
        ("", "empty_media"),
        (base64.b64encode(b"no picture").decode(), "unsupported_media"),
        (base64.b64encode(sound()).decode(), "modality_mismatch"),
        (base64.b64encode(bytes(MAX_BYTES + 1)).decode(), "media_too_large"),
    ],
)
def test_what_is_no_medium_is_refused(value: str, code: str, store: CallerArtifacts) -> None:
    with pytest.raises(RequestError, match=r"^The argument 'image': ") as raised:
        store_arguments(SPEC, {"image": value}, store, MAX_BYTES)
    assert (raised.value.code, raised.value.param) == (code, "image")


def test_values_of_another_type_are_left_to_the_tool(store: CallerArtifacts) -> None:
    assert store_arguments(SPEC, {"image": 5, "audio": None}, store, MAX_BYTES) == {"image": 5, "audio": None}


def test_results_are_mcps_content(store: CallerArtifacts) -> None:
    image, audio = store.put(picture()), store.put(sound())
    words, name, medium = build_content(ToolResult("Done well.", image), picture())
    assert words == TextContent(text="Done well.")
    assert isinstance(name, TextContent)
    assert name.text.startswith(f"artifact:{image.id} (image/png, ")
    assert isinstance(medium, ImageContent)
    assert (base64.b64decode(medium.data), medium.mime_type) == (picture(), "image/png")
    _, medium = build_content(ToolResult("", audio), sound())
    assert isinstance(medium, AudioContent)
    assert (base64.b64decode(medium.data), medium.mime_type) == (sound(), "audio/wav")
    assert build_content(ToolResult("  "), None) == [TextContent(text="Done.")], "never nothing"


def test_a_video_is_a_resource(store: CallerArtifacts) -> None:
    still = store.put(picture(kind="GIF"), "video")
    _, medium = build_content(ToolResult("", still), picture(kind="GIF"))
    assert isinstance(medium, EmbeddedResource)
    assert isinstance(medium.resource, BlobResourceContents)
    assert base64.b64decode(medium.resource.blob) == picture(kind="GIF")
    assert (medium.resource.uri, medium.resource.mime_type) == (f"artifact:{still.id}", "image/gif")
