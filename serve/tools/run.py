"""Run a tool in a process of its own, shut in (`sandbox/`) and under limits of time, memory, media and output."""

from __future__ import annotations

import atexit
import functools
import inspect
import os
import socket
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any, get_args

from data_pipeline.errors import InputError
from serve.tools.media import ToolLimits
from serve.tools.process import START_S, WorkerProcess
from serve.tools.spec import ErrorCode, ToolError, ToolFile, ToolOutput, ToolSpec
from serve.tools.wire import WireError, read_fault, receive_message, send_message

DEFAULT_LIMITS = ToolLimits()
MODEL_CACHE_BYTES = 8 * 2**30
_MODULE = "serve.tools.launch"
_MODEL_ENVIRONMENT = ("HF_", "HUGGINGFACE_", "TRANSFORMERS_", "TORCH_", "CUDA_", "OMP_")


class Caller:
    """Who waits for a call; it ends when they leave: at once, or one of a model at its next pass."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sock: socket.socket | None = None
        self._how = socket.SHUT_RDWR
        self._has_left = False

    def leave(self) -> None:
        """Nobody waits any more; the call ends with an error. For another thread than the call's."""
        with self._lock:
            self._has_left = True
            if self._sock is not None:
                self._sock.shutdown(self._how)

    def hold(self, sock: socket.socket | None, how: int = socket.SHUT_RDWR) -> None:
        """Take the line over which a call is made, or let it go; `how` it is shut when the caller leaves."""
        with self._lock:
            self._sock, self._how = sock, how
            if self._has_left and sock is not None:
                sock.shutdown(how)


class ToolRunner:
    """Runs tools in warm worker processes: one that forks per call, and one that keeps models.

    Safe to use from several threads. Calls of tools without a model run side by side; those with one run one after
    another. Edge detection on a 640 x 480 picture takes 50 to 80 ms in all on two busy cores (docs/tools.md).
    """

    def __init__(self, model_cache_bytes: int = MODEL_CACHE_BYTES) -> None:
        self._fork = WorkerProcess(_MODULE, "fork", "0")
        self._online = WorkerProcess(_MODULE, "online", "0")
        self._resident = WorkerProcess(
            _MODULE, "resident", str(model_cache_bytes), variables=_MODEL_ENVIRONMENT, is_resident=True
        )
        self._resident_turn = threading.Lock()
        self.model_counts: dict[str, int] = {}

    def start(self, has_models: bool, specs: Iterable[ToolSpec] = ()) -> None:
        """Start the worker of tools with a model, or of those without, ahead of the first call; does not wait.

        Args:
            has_models: which of the two.
            specs: tools whose files the first may read: for others it starts again.
        """
        if has_models:
            self._resident.start({path for spec in specs if spec.method == "model" for path in _readable(spec)})
        else:
            self._fork.start()

    def run(
        self,
        spec: ToolSpec,
        values: Mapping[str, Any],
        media: Mapping[str, bytes],
        limits: ToolLimits = DEFAULT_LIMITS,
        caller: Caller | None = None,
    ) -> ToolOutput:
        """Check the arguments, decode the media and call the tool's function.

        Args:
            spec: the tool.
            values: argument name -> value; that of a medium is an artifact's id.
            media: artifact id -> the file's bytes.
            limits: what the call may use; time and memory of the spec hold where they are lower.
            caller: whose leaving ends the call; a model's at its next forward pass, as its process keeps the weights.

        Returns:
            what the function returned.

        Raises:
            ToolError: see its codes; the message is fit for a client.
        """
        limits = replace(
            limits,
            timeout_s=min(limits.timeout_s, spec.timeout_s),
            memory_mb=min(limits.memory_mb, spec.memory_mb),
        )
        deadline = time.monotonic() + limits.timeout_s
        call, blocks = _build_call(spec, values, media, limits)
        if spec.method != "model":
            worker = self._online if spec.needs_network else self._fork
            return self._call(worker, spec, call, blocks, limits, deadline, caller or Caller())
        if not self._resident_turn.acquire(timeout=limits.timeout_s):
            raise ToolError("timeout", f"{spec.call_name} waited {limits.timeout_s:g} s for its turn; try again later.")
        try:
            return self._call(self._resident, spec, call, blocks, limits, deadline, caller or Caller())
        finally:
            self._resident_turn.release()

    def _call(
        self,
        worker: WorkerProcess,
        spec: ToolSpec,
        call: dict[str, Any],
        blocks: list[bytes],
        limits: ToolLimits,
        deadline: float,
        caller: Caller,
    ) -> ToolOutput:
        is_resident = worker is self._resident
        load_s = limits.load_timeout_s if is_resident else 0.0
        request = {
            "file": call["file"],
            "readable": _readable(spec),
            "timeout_s": limits.timeout_s + load_s,
            "memory_mb": limits.memory_mb,
        }
        try:
            with worker.submit(request, max(deadline, time.monotonic() + START_S)) as sock:
                deadline = time.monotonic() + limits.timeout_s  # a start of the worker is not the call's fault
                caller.hold(sock, socket.SHUT_WR if is_resident else socket.SHUT_RDWR)
                try:
                    send_message(sock, call, blocks, deadline)
                    reply, files = _receive_reply(sock, limits.max_output_bytes, deadline, load_s)
                finally:
                    caller.hold(None)
        except TimeoutError as error:
            if is_resident:
                worker.stop()  # the models are lost; the next call starts the worker again
            if isinstance(error, _LoadTimeoutError):
                raise ToolError(
                    "timeout",
                    f"the weights of {spec.call_name} took longer than {load_s:g} s to load; try again later, or let "
                    "the service give them more time (tool_load_timeout_s).",
                ) from error
            raise ToolError(
                "timeout",
                f"{spec.call_name} took longer than {limits.timeout_s:g} s and was stopped; give it less to do.",
            ) from error
        except WireError as error:
            raise ToolError(
                "failed",
                f"the process of {spec.call_name} ended without an answer: it crashed on this input or needed "
                f"far more than "
                f"its {limits.memory_mb} MB of memory; give it other or smaller media.",
            ) from error
        return self._read_reply(spec, reply, files, limits)

    def _read_reply(
        self, spec: ToolSpec, reply: dict[str, Any], files: list[bytearray], limits: ToolLimits
    ) -> ToolOutput:
        """What a call gave; nothing in it is believed, as hostile media may have taken over its process."""
        counts = reply.get("cache")
        if isinstance(counts, dict) and all(isinstance(count, int) for count in counts.values()):
            self.model_counts = counts
        code, text = reply.get("code"), reply.get("text")
        if isinstance(code, str):
            known: ErrorCode = next((known for known in get_args(ErrorCode) if known == code), "failed")
            raise ToolError(known, f"{spec.call_name}: {read_fault(reply.get('message'))}")
        media_type = reply.get("media_type") if files else ""
        if not isinstance(text, str) or len(text) > limits.max_output_chars or not isinstance(media_type, str):
            raise ToolError("failed", f"the process of {spec.call_name} answered what is no result.")
        return ToolOutput(text, ToolFile(bytes(files[0]), media_type) if files else None)

    def close(self) -> None:
        """End the worker processes."""
        for worker in (self._fork, self._online, self._resident):
            worker.stop()


class _LoadTimeoutError(TimeoutError):
    """Weights took too long to load."""


def _receive_reply(
    sock: socket.socket, max_bytes: int, deadline: float, load_s: float
) -> tuple[dict[str, Any], list[bytearray]]:
    """What a call gave. While its process says that it loads weights, its time stands still, for `load_s` in all."""
    while True:
        reply, files = receive_message(sock, max_bytes, deadline, max_blocks=1)
        if reply.get("is_loading") is not True:
            return reply, files
        start = time.monotonic()
        try:
            receive_message(sock, 0, start + load_s, max_blocks=0)
        except TimeoutError as error:
            raise _LoadTimeoutError from error
        loading_s = time.monotonic() - start
        deadline, load_s = deadline + loading_s, load_s - loading_s


def _readable(spec: ToolSpec) -> list[str]:
    """Files and folders that a call may read beside Python and this code."""
    file = _tool_file(spec)
    folders = [model_id for model_id in spec.model_ids if os.path.isdir(model_id)]
    return [os.path.abspath(path) for path in (*([] if file is None else [file]), *folders, *spec.reads)]


def _tool_file(spec: ToolSpec) -> str | None:
    """The file of a tool that is none of ours."""
    module = inspect.getmodule(spec.run)
    is_ours = module is not None and module.__name__.startswith("serve.tools.")
    return None if is_ours else os.path.abspath(inspect.getfile(spec.run))


def _build_call(
    spec: ToolSpec, values: Mapping[str, Any], media: Mapping[str, bytes], limits: ToolLimits
) -> tuple[dict[str, Any], list[bytes]]:
    try:
        parsed = spec.parse(values)
    except InputError as error:
        raise ToolError("bad_arguments", str(error)) from error
    arguments, blocks = [], []
    for argument in spec.arguments:
        value = parsed[argument.name]
        if argument.is_media:
            if value not in media:
                raise ToolError(
                    "bad_arguments",
                    f"there is no artifact {value[:80]!r} for argument {argument.name!r} of {spec.call_name}; "
                    f"give the id of "
                    "an uploaded file or of a tool's result.",
                )
            blocks.append(media[value])
        arguments.append((argument.parameter or argument.name, argument.kind if argument.is_media else None, value))
    return {
        "module": spec.run.__module__,
        "file": _tool_file(spec),
        "qualname": spec.run.__qualname__,
        "model_ids": spec.model_ids,
        "arguments": arguments,
        "limits": asdict(limits),
    }, blocks


@functools.cache
def _shared_runner() -> ToolRunner:
    runner = ToolRunner()
    atexit.register(runner.close)
    return runner


def run_tool(
    spec: ToolSpec, values: Mapping[str, Any], media: Mapping[str, bytes], limits: ToolLimits = DEFAULT_LIMITS
) -> ToolOutput:
    """`ToolRunner.run` with a runner that the whole process shares; its workers start at the first call."""
    return _shared_runner().run(spec, values, media, limits)
