"""Ask for media to be decoded by processes that are shut in; what they give back is checked, not believed."""

from __future__ import annotations

import atexit
import functools
import logging
import math
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TypeVar

import numpy as np

from data_pipeline.errors import MediaError
from data_pipeline.media.limits import MediaLimits, describe_source
from data_pipeline.media.load import LOADED_SHAPES
from data_pipeline.records.schema import Modality
from serve.tools.process import START_S, WorkerProcess
from serve.tools.wire import WireError, read_fault, receive_message, send_message

logger = logging.getLogger("ray.serve")

MEMORY_MB = 4096  # of one decoder, beyond what it is started with: as much as a tool has for the same media
CPU_S = 600  # of one decoder in its whole life; then another takes its place, so none burns or leaks for ever
LOOK_S = 10.0  # for a look at a container's head
SHARED_DECODERS = 2
MAX_HEADER_BYTES = 16 * 1024  # of a reply
_MODULE = "serve.decoding.launch"
_FLOAT32 = np.dtype("<f4")

_Result = TypeVar("_Result")
_Reading = Callable[[dict[str, Any], list[bytearray]], _Result]


class DecoderUnavailableError(Exception):
    """No decoder took the medium: all are at work, or none can be started. It says nothing of the medium."""


class _MemoryFault(Exception):
    """A decoder may not have as much memory as a medium needs."""


class MediaDecoder:
    """Decoders in processes of their own, started as they are needed and kept, each for one medium at a time.

    One that dies, takes too long or needs too much memory is replaced. Its death is the fault of the medium, unless it
    had decoded others before: they may have left it damaged, so the medium is tried once more by a fresh one.

    Safe to use from several threads; blocks.
    """

    def __init__(self, n_decoders: int, timeout_s: float, memory_mb: int = MEMORY_MB) -> None:
        """Start nothing yet.

        Args:
            n_decoders: processes, at most.
            timeout_s: for one medium.
            memory_mb: that one decoder may allocate.
        """
        self._timeout_s = timeout_s
        self._memory_mb = memory_mb
        self._worker = WorkerProcess(_MODULE)
        self._turns = threading.BoundedSemaphore(n_decoders)
        self._idle: list[socket.socket] = []  # lines to decoders that wait; append and pop are atomic

    def start(self) -> None:
        """Start the process that forks decoders ahead of the first medium; does not wait."""
        self._worker.start()

    def list_modalities(self, data: bytes, container_format: str) -> list[Modality]:
        """What a container of sound or video holds.

        Args:
            data: the whole file.
            container_format: FFmpeg's name of it.

        Returns:
            VIDEO, AUDIO, both or none.

        Raises:
            MediaError: the file cannot be read.
            DecoderUnavailableError: no decoder took it.
        """

        def read(reply: dict[str, Any], blocks: list[bytearray]) -> list[Modality]:
            names = reply.get("modalities")
            known = [Modality.VIDEO, Modality.AUDIO]
            if not isinstance(names, list) or blocks or any(name not in known for name in names):
                raise WireError("a decoder told no modalities")
            return [modality for modality in known if modality in names]

        return self._ask({"format": container_format}, data, 0, read)

    def load(self, modality: Modality, data: bytes, recipe: str, limits: MediaLimits) -> np.ndarray:
        """`data_pipeline.media.load.load_media` of a file's bytes, there.

        Raises:
            MediaError: the medium cannot be used; one sentence says why.
            DecoderUnavailableError: no decoder took it.
        """
        shape = LOADED_SHAPES[modality]
        n_bytes = math.prod(shape) * _FLOAT32.itemsize

        def read(reply: dict[str, Any], blocks: list[bytearray]) -> np.ndarray:
            is_asked = reply.get("shape") == list(shape) and reply.get("dtype") == _FLOAT32.str
            if not is_asked or [len(block) for block in blocks] != [n_bytes]:
                raise WireError("a decoder gave another array than the one it was asked for")
            array = np.frombuffer(blocks[0], _FLOAT32).reshape(shape)
            if not np.isfinite(array).all():
                raise WireError("a decoder gave what is no number")
            return array

        call = {"format": None, "modality": modality.value, "recipe": recipe, "limits": asdict(limits)}
        return self._ask(call, data, n_bytes, read)

    def close(self) -> None:
        """End the processes; a later call starts them again."""
        while self._idle:
            self._idle.pop().close()
        self._worker.stop()

    def _ask(self, call: dict[str, Any], data: bytes, max_bytes: int, read: _Reading[_Result]) -> _Result:
        name = describe_source(data)
        if not self._turns.acquire(timeout=self._timeout_s):
            raise DecoderUnavailableError("Too many media are being decoded; try again in a moment.")
        try:
            try:
                return self._exchange(self._idle.pop(), call, data, max_bytes, read)
            except IndexError:
                pass  # there is none
            except (WireError, _MemoryFault):
                pass  # perhaps for what it had decoded before
            return self._exchange(self._fork(), call, data, max_bytes, read)
        except _MemoryFault as error:
            raise MediaError(
                f"{name} needs more than {self._memory_mb:,} MB of memory to decode; scale it down or cut it first."
            ) from error
        except TimeoutError as error:
            raise MediaError(
                f"{name} took longer than {self._timeout_s:g} s to decode and was given up; scale it down or cut it."
            ) from error
        except WireError as error:
            raise MediaError(
                f"{name} cannot be decoded: its decoder failed, as on a damaged file; re-encode it or give another."
            ) from error
        finally:
            self._turns.release()

    def _fork(self) -> socket.socket:
        request = {"readable": [], "timeout_s": None, "memory_mb": self._memory_mb, "cpu_s": CPU_S}
        try:
            return self._worker.submit(request, time.monotonic() + START_S)
        except (WireError, TimeoutError) as error:
            raise DecoderUnavailableError("Media cannot be decoded right now; try again in a moment.") from error

    def _exchange(
        self, line: socket.socket, call: dict[str, Any], data: bytes, max_bytes: int, read: _Reading[_Result]
    ) -> _Result:
        """Send one medium to a decoder and read what it says; whatever is wrong with it, it ends."""
        deadline = time.monotonic() + self._timeout_s
        try:
            send_message(line, call, [data], deadline)
            reply, blocks = receive_message(line, max_bytes, deadline, int(max_bytes > 0), MAX_HEADER_BYTES)
            fault = reply.get("fault")
            if fault == "out_of_memory":
                raise _MemoryFault
            if fault == "unforeseen":
                logger.warning("a decoder failed: %s", read_fault(reply.get("trace")))
                raise WireError("a decoder failed")
            result = None if fault else read(reply, blocks)
        except BaseException:
            line.close()  # and so it is killed
            raise
        self._idle.append(line)
        if result is None:
            raise MediaError(read_fault(reply.get("message")))
        return result


@functools.cache
def shared_decoder() -> MediaDecoder:
    """One for the whole process, to look at what is uploaded; nothing starts before the first look."""
    decoder = MediaDecoder(SHARED_DECODERS, LOOK_S)
    atexit.register(decoder.close)
    return decoder
