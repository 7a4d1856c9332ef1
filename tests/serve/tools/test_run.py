"""Calls in processes of their own, and every limit that binds them."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import struct
import subprocess
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline.media.limits import MediaLimits
from serve.tools.all_tools import load_tools
from serve.tools.media import ToolLimits, decode_media, png_file
from serve.tools.run import Caller, ToolRunner
from serve.tools.spec import Argument, ToolError, ToolFile, ToolOutput, ToolSpec
from serve.tools.wire import receive_message, send_message

# --- functions that run inside the tools' process: this file is loaded there by its path


def sleep_long(seconds: float) -> ToolOutput:
    subprocess.Popen(["sleep", "61.5"])
    time.sleep(seconds)
    return ToolOutput("awake")


def hold_megabytes(megabytes: int) -> ToolOutput:
    return ToolOutput(str(np.ones(megabytes * 2**20, np.uint8).sum()))


def resize_with_opencv(side: int) -> ToolOutput:
    import cv2

    return ToolOutput(str(cv2.resize(np.zeros((8, 8, 3), np.uint8), (side, side)).shape))


def crash() -> ToolOutput:
    os.abort()


def divide_by_zero() -> ToolOutput:
    return ToolOutput(str(1 / 0))


def say_much() -> ToolOutput:
    return ToolOutput(file=ToolFile(b"x" * 2_000_000, "image/png"))


def tell_secret() -> ToolOutput:
    return ToolOutput(os.environ.get("SERVICE_API_KEY", "nothing"))


LOADS, LOADED = {"is_loading": True}, {"is_loading": False}
NUMBER = (Argument("seconds", "number", "s"),)
MEGABYTES = (Argument("megabytes", "integer", "MB"),)
SIDE = (Argument("side", "integer", "px"),)
EDGES = load_tools()["local/detect-edges"]
SMALL = ToolLimits(media=MediaLimits(max_pixels=100_000, max_duration_s=5, max_bytes=10**6), max_output_bytes=10**6)


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ToolRunner]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SERVICE_API_KEY", "secret")
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("tools")))
        runner = ToolRunner()
        yield runner
        runner.close()


def spec_of(function, arguments: tuple[Argument, ...] = (), **limits) -> ToolSpec:
    return ToolSpec(f"local/{function.__name__}", function, "A test.", arguments, "text", **limits)


def refusal(runner: ToolRunner, spec: ToolSpec, values: dict, media: dict | None = None) -> ToolError:
    with pytest.raises(ToolError) as caught:
        runner.run(spec, values, media or {}, SMALL)
    assert "\n" not in caught.value.message
    assert "Traceback" not in caught.value.message
    return caught.value


def square_png() -> bytes:
    picture = np.zeros((100, 120, 3), np.uint8)
    picture[30:70, 40:90] = (200, 30, 60)
    return png_file(picture).data


def test_a_picture_goes_in_and_its_edges_come_out(runner: ToolRunner) -> None:
    output = runner.run(EDGES, {"image": "abc"}, {"abc": square_png()})
    assert output.file is not None
    edges = np.array(Image.open(io.BytesIO(output.file.data)))
    rows, columns = np.nonzero(edges)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == pytest.approx((30, 69, 40, 89), abs=1)
    assert not edges[35:65, 45:85].any()
    assert "Canny" in output.text


def test_a_function_stands_behind_tools_of_several_argument_names(runner: ToolRunner) -> None:
    canny = load_tools()["gpt4tools/edge-detection-on-image"]
    assert canny.run is EDGES.run
    media = {"abc": square_png()}
    assert runner.run(canny, {"image_path": "abc"}, media) == runner.run(EDGES, {"image": "abc"}, media)


def test_calls_run_side_by_side_and_quickly(runner: ToolRunner) -> None:
    picture = square_png()
    start = time.perf_counter()
    with ThreadPoolExecutor(8) as pool:
        outputs = list(pool.map(lambda _: runner.run(EDGES, {"image": "a"}, {"a": picture}), range(24)))
    assert len({output.file.data for output in outputs if output.file}) == 1
    assert time.perf_counter() - start < 10  # 24 starts of an interpreter with these libraries would take far longer


def assert_nobody_sleeps() -> None:
    for _ in range(50):
        if not any(file.read_bytes() == b"sleep\x0061.5\0" for file in Path("/proc").glob("[0-9]*/cmdline")):
            return
        time.sleep(0.1)
    pytest.fail("the child of the killed tool lives on")


def test_a_call_out_of_time_is_killed_with_its_children(runner: ToolRunner) -> None:
    start = time.perf_counter()
    error = refusal(runner, spec_of(sleep_long, NUMBER, timeout_s=1.0), {"seconds": 30})
    assert error.code == "timeout"
    assert time.perf_counter() - start < 5
    assert_nobody_sleeps()
    assert runner.run(EDGES, {"image": "a"}, {"a": square_png()}).text  # the next call is served


def test_memory_is_bounded(runner: ToolRunner) -> None:
    spec = spec_of(hold_megabytes, MEGABYTES, memory_mb=300)
    assert runner.run(spec, {"megabytes": 200}, {}).text == str(200 * 2**20)
    assert refusal(runner, spec, {"megabytes": 400}).code == "out_of_memory"
    assert refusal(runner, spec_of(resize_with_opencv, SIDE, memory_mb=300), {"side": 30_000}).code == "out_of_memory"


def test_a_call_ends_when_its_caller_leaves(runner: ToolRunner) -> None:
    caller, start_s = Caller(), time.monotonic()
    threading.Timer(1.0, caller.leave).start()
    with pytest.raises(ToolError, match="ended without an answer"):
        runner.run(spec_of(sleep_long, NUMBER, timeout_s=60.0), {"seconds": 50}, {}, caller=caller)
    assert time.monotonic() - start_s < 40
    assert_nobody_sleeps()
    with pytest.raises(ToolError, match="ended without an answer"):  # gone before the call began
        runner.run(spec_of(sleep_long, NUMBER, timeout_s=60.0), {"seconds": 50}, {}, caller=caller)


@pytest.mark.parametrize(
    ("function", "code", "words"),
    [(crash, "failed", "ended without an answer"), (divide_by_zero, "failed", "ZeroDivisionError"), (say_much,
    "failed", "at most")],
)  # fmt: skip
def test_a_failing_tool_fails_alone(runner: ToolRunner, function, code: str, words: str) -> None:
    error = refusal(runner, spec_of(function), {})
    assert error.code == code
    assert words in error.message


def test_tools_do_not_see_the_secrets_of_the_service(runner: ToolRunner) -> None:
    assert runner.run(spec_of(tell_secret), {}, {}).text == "nothing"


def test_arguments_are_checked_before_anything_starts(runner: ToolRunner) -> None:
    assert refusal(runner, EDGES, {"image": "made-up"}).code == "bad_arguments"
    assert "no artifact 'made-up'" in refusal(runner, EDGES, {"image": "made-up"}).message
    assert refusal(runner, EDGES, {"picture": "a"}, {"a": square_png()}).code == "bad_arguments"


class StandInWorker:
    """Stands for the process of models: says these things, each behind a pause."""

    def __init__(self, *said: tuple[float, dict]) -> None:
        self._said = said
        self.is_stopped = False

    @contextlib.contextmanager
    def submit(self, request: dict, deadline: float) -> Iterator[socket.socket]:
        ours, theirs = socket.socketpair()

        def talk() -> None:
            receive_message(theirs, 2**20)
            for pause_s, message in self._said:
                time.sleep(pause_s)
                send_message(theirs, message)

        thread = threading.Thread(target=talk)
        thread.start()
        with ours, theirs:
            yield ours
            thread.join()

    def stop(self) -> None:
        self.is_stopped = True


@pytest.mark.parametrize(
    ("load_timeout_s", "said", "told"),
    [
        (60.0, [(0.1, LOADS), (1.2, LOADED), (0.0, {"text": "done"})], "done"),  # as long as it loads, its time stands
        (60.0, [(0.0, LOADS), (0.1, LOADED)], "took longer than 1 s and was stopped"),
        (0.5, [(0.0, LOADS)], r"weights of local/sleep_long took longer than 0.5 s to load; .*tool_load_timeout_s"),
        (0.5, [(0.0, LOADS), (0.3, LOADED), (0.0, LOADS)], "to load"),  # in all
    ],
)
def test_loading_has_its_own_limit(load_timeout_s: float, said: list[tuple[float, dict]], told: str) -> None:
    runner, worker = ToolRunner(), StandInWorker(*said)
    runner._resident = worker  # type: ignore[assignment]
    spec = spec_of(sleep_long, NUMBER, method="model", model_id="m", timeout_s=1.0)
    limits = ToolLimits(load_timeout_s=load_timeout_s)
    if told == "done":
        assert runner.run(spec, {"seconds": 1}, {}, limits).text == told
    else:
        with pytest.raises(ToolError, match=told) as caught:
            runner.run(spec, {"seconds": 1}, {}, limits)
        assert caught.value.code == "timeout"
    assert worker.is_stopped == (told != "done"), "its models are lost with what cannot be stopped otherwise"


def png_bomb() -> bytes:
    """A PNG of 60,000 x 60,000 pixels in a few kilobytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 10**6))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("data", [png_bomb(), b"", b"no picture", square_png()[:200], b"x" * 2_000_000])
def test_hostile_pictures_are_refused(runner: ToolRunner, data: bytes) -> None:
    assert refusal(runner, EDGES, {"image": "a"}, {"a": data}).code == "bad_media"


def test_a_dead_worker_is_started_again(runner: ToolRunner) -> None:
    process = runner._fork._process
    assert process is not None
    process.kill()
    process.wait()
    assert runner.run(EDGES, {"image": "a"}, {"a": square_png()}).file is not None


def test_pictures_are_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    buffer = io.BytesIO()
    Image.new("RGB", (30, 10)).save(buffer, "JPEG", exif=exif)
    assert decode_media("image", buffer.getvalue(), ToolLimits()).shape == (30, 10, 3)  # type: ignore[union-attr]
