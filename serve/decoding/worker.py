"""The process that decodes media; `launch.py` starts and shuts it in, `decoder.py` asks it.

A small process has the decoders' libraries imported and forks (`serve/tools/fork_server.py`): not for each medium, but
once for each decoder, which then takes one medium after another, and again where one has died.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import io
import resource
import socket
import traceback
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Disposition
from PIL import Image

from data_pipeline.errors import MediaError
from data_pipeline.media.limits import MediaLimits
from data_pipeline.media.load import load_media
from data_pipeline.records.schema import Modality
from serve.tools.fork_server import ForkedCall, ForkServer, limit_memory
from serve.tools.sandbox.confine import Mechanisms, enter_call
from serve.tools.wire import WireError, receive_message, send_message

MAX_TRACE_CHARS = 2000
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt (malloc.h)
_KEPT_BYTES = 128 * 2**20  # by a decoder from medium to medium, with what it shares
_LARGEST_KEPT_BYTES = 32 * 2**20  # in one piece: the most that glibc takes
_libc = ctypes.CDLL(None)
_MAX_BYTES = 2**40  # of a medium: the replica has counted them


def serve_decoders(fd: int, mechanisms: Mechanisms, folder: str, users: range) -> None:
    """Fork a decoder for each request, until the replica closes its end of the control socket.

    Args:
        fd: the control socket.
        mechanisms: that shut decoders in.
        folder: an empty one of this process.
        users: numbers for users of their own.
    """
    Image.init()  # imports the formats' modules, so that no decoder has to
    _keep_freed_memory()
    gc.freeze()  # what is imported is no garbage, which makes looking for it a matter of microseconds

    def run(call: ForkedCall) -> None:
        limit_memory(call.request["memory_mb"])
        cpu_s = call.request["cpu_s"]
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s))
        enter_call(mechanisms, call.user, None, (), has_network=False)
        with contextlib.suppress(WireError):  # the replica has closed the line
            while True:
                _answer(call.sock)
                _tidy_up()

    ForkServer(socket.socket(fileno=fd), mechanisms, folder, users, run).serve()


def _keep_freed_memory() -> None:
    """Let a decoder keep some memory from medium to medium: to be given it anew cost a third of a picture's time."""
    if hasattr(_libc, "mallopt"):  # glibc's
        _libc.mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
        _libc.mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT_BYTES)


def _tidy_up() -> None:
    """Free what a medium has left behind, frames lie in cycles, and give back what is more than some."""
    gc.collect()
    n_pages = int(Path("/proc/self/statm").read_text().split()[1])
    if n_pages * resource.getpagesize() > _KEPT_BYTES and hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(ctypes.c_size_t(0))


def _answer(sock: socket.socket) -> None:
    """Receive one medium, decode it and send what came of it."""
    call, blocks = receive_message(sock, _MAX_BYTES, max_blocks=1)
    data = bytes(blocks[0])
    reply: dict[str, Any]
    arrays: list[memoryview] = []
    try:
        if call["format"] is not None:
            reply = {"modalities": list_modalities(data, call["format"])}
        else:
            limits = MediaLimits(**call["limits"])
            array = np.ascontiguousarray(load_media(call["modality"], data, call["recipe"], limits=limits))
            reply, arrays = {"shape": array.shape, "dtype": array.dtype.str}, [array.data.cast("B")]
    except Exception as error:  # noqa: BLE001 - whatever a decoder raises, its client gets one sentence, the log the rest
        if isinstance(error, MemoryError) or isinstance(error.__cause__, MemoryError):  # FFmpeg's is told as damage
            reply = {"fault": "out_of_memory"}
        elif isinstance(error, MediaError):
            reply = {"fault": "bad_media", "message": str(error)}
        else:
            reply = {"fault": "unforeseen", "trace": traceback.format_exc()[-MAX_TRACE_CHARS:]}
    send_message(sock, reply, arrays)


def list_modalities(data: bytes, container_format: str) -> list[Modality]:
    """What a container of sound or video holds, told by its head: pictures first.

    Args:
        data: the whole file.
        container_format: FFmpeg's name of it; no other is tried.

    Raises:
        MediaError: it cannot be opened.
    """
    try:
        with av.open(io.BytesIO(data), format=container_format) as container:
            # a cover picture inside a sound file counts as a video stream to FFmpeg
            has_video = any(not stream.disposition & Disposition.attached_pic for stream in container.streams.video)
            return [Modality.VIDEO] * has_video + [Modality.AUDIO] * (len(container.streams.audio) > 0)
    except (av.FFmpegError, ValueError) as error:
        raise MediaError(
            "The medium cannot be read: its container is truncated or damaged; send the whole file."
        ) from error
