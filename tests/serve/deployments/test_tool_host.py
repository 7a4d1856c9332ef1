"""A replica of the tools without Ray: what it takes, what it gives back, what it starts."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from ray import serve as ray_serve
from small_media import picture, sound

from serve.agent.tool_reply import ToolReply
from serve.artifacts import open_artifacts
from serve.config import ServeArgs
from serve.deployments.tool_host import THREADS, ToolHost, build_limits
from serve.tools.run import DEFAULT_LIMITS
from serve.tools.spec import Argument, ToolError, ToolSpec
from serve.tools.tool_file import load_tool_file

EDGES = "local/detect-edges"


def test_a_tool_takes_whatever_the_service_takes() -> None:
    args = ServeArgs(bundle="b", tool_timeout_s=7, tool_load_timeout_s=70)
    media = build_limits(args).media
    assert (media.max_pixels, media.max_duration_s) == (args.max_pixels, args.max_duration_s)
    assert media.max_bytes >= max(args.max_upload_bytes, DEFAULT_LIMITS.max_output_bytes)
    assert (build_limits(args).timeout_s, build_limits(args).load_timeout_s) == (7, 70)
    assert build_limits(ServeArgs(bundle="b", max_pixels=9, max_upload_bytes=10**9)).media.max_bytes == 10**9


@pytest.fixture(scope="module")
def args(tmp_path_factory: pytest.TempPathFactory) -> ServeArgs:
    return ServeArgs(bundle="b", artifacts=str(tmp_path_factory.mktemp("artifacts")), max_pixels=100)


@pytest.fixture(scope="module")
def host(args: ServeArgs) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_serve, "get_replica_context", lambda: SimpleNamespace(deployment="LocalTools"))
        host = ToolHost.func_or_class(args)  # pyright: ignore[reportCallIssue]
        assert host._runner._fork._process is not None, "it starts before the first call"
        assert host._runner._resident._process is None
        yield host


def invoke(host: Any, tool_id: str, **arguments: Any) -> ToolReply:
    return asyncio.run(host.invoke(tool_id, arguments, "local"))


def test_an_artifact_goes_in_and_one_comes_out(host: Any, args: ServeArgs) -> None:
    store = open_artifacts(args).of("local")
    result = invoke(host, EDGES, image=store.put(picture(), "image/png", "a.png").id).unpack()
    assert result.artifact is not None
    artifact, data = store.open(result.artifact.id)
    assert artifact.media_type == "image/png"
    assert np.asarray(Image.open(io.BytesIO(data))).shape == (8, 8)


def test_what_is_wrong_is_told_by_a_code_and_a_sentence(host: Any, args: ServeArgs, tmp_path: Path) -> None:
    store = open_artifacts(args).of("local")
    file = io.BytesIO()
    Image.new("RGB", (20, 20)).save(file, "PNG")
    for reply, code, words in (
        (invoke(host, EDGES), "bad_arguments", "needs the argument 'image'"),
        (invoke(host, EDGES, image="0" * 32), "bad_media", "no artifact"),
        (invoke(host, EDGES, image=store.put(sound(), "audio/wav").id), "bad_media", "not an image that can be read"),
        (invoke(host, EDGES, image=store.put(file.getvalue(), "").id), "bad_media", "at most 100 are allowed"),
    ):
        assert reply.error == code
        with pytest.raises(ToolError, match=words):
            reply.unpack()


def test_calls_end_when_their_callers_leave(host: Any, args: ServeArgs, tmp_path: Path) -> None:
    """As many as a replica runs side by side; the next caller does not wait for them."""
    (tmp_path / "slow.py").write_text("import time\n\n\ndef wait(seconds):\n    time.sleep(seconds)\n")
    wait = load_tool_file(str(tmp_path / "slow.py")).wait
    spec = ToolSpec("own/wait", wait, "Waits.", (Argument("seconds", "number", "how long"),), "text")
    host._specs["own/wait"] = spec

    async def leave() -> None:
        calls = [asyncio.create_task(host.invoke("own/wait", {"seconds": 50}, "local")) for _ in range(THREADS)]
        await asyncio.sleep(2)
        for call in calls:
            call.cancel()
        for call in calls:
            with pytest.raises(asyncio.CancelledError):
                await call

    start_s = time.monotonic()
    asyncio.run(leave())
    edges = invoke(host, EDGES, image=open_artifacts(args).of("local").put(picture(), "image/png", "a.png").id)
    assert edges.unpack().artifact is not None
    assert time.monotonic() - start_s < 40
