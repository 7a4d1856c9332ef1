"""Run a tool in a process of its own, under limits of time, memory, media and output."""

from __future__ import annotations

import atexit
import contextlib
import functools
import inspect
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from data_pipeline.errors import InputError
from serve.tools.media import ToolLimits
from serve.tools.spec import ToolError, ToolFile, ToolOutput, ToolSpec
from serve.tools.wire import WireError, receive_message, send_message

DEFAULT_LIMITS = ToolLimits()
MODEL_CACHE_BYTES = 8 * 2**30
START_S = 120.0  # for a worker's imports on a slow machine
# The environment of tools: what programs need to run, and none of the service's secrets.
_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "TESSDATA_PREFIX", "SSL_CERT_FILE")
_MODEL_ENVIRONMENT = ("HF_", "HUGGINGFACE_", "TRANSFORMERS_", "TORCH_", "CUDA_", "OMP_")


class _Worker:
    """One process of `serve.tools.worker`, started at the first call and again after its death."""

    def __init__(self, mode: str, cache_bytes: int) -> None:
        self._mode = mode
        self._cache_bytes = cache_bytes
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def submit(self, request: dict[str, Any], deadline: float) -> tuple[socket.socket, int]:
        """Begin a call.

        Returns:
            the socket to talk to it over, and the id of its process.

        Raises:
            TimeoutError: the worker did not take it before the deadline.
            WireError: the worker cannot be started.
        """
        ours, theirs = socket.socketpair()
        try:
            with theirs, self._lock:
                for attempt in range(2):
                    try:
                        self._start_locked()
                        assert self._control is not None
                        self._control.settimeout(max(START_S if attempt else deadline - time.monotonic(), 0.01))
                        socket.send_fds(self._control, [json.dumps(request).encode()], [theirs.fileno()])
                        answer = self._control.recv(256)
                        if answer:
                            return ours, json.loads(answer)["pid"]
                    except (BrokenPipeError, ConnectionResetError):
                        pass  # it died since the last call
                    self._stop_locked()
        except BaseException:
            ours.close()
            raise
        ours.close()
        raise WireError("the worker of the tools does not start")

    def start(self) -> None:
        """Start the process where none runs, and let it import what it needs while nobody waits for it."""
        with self._lock:
            self._start_locked()

    def _start_locked(self) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        self._stop_locked()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        names = [name for name in os.environ if name in _ENVIRONMENT]
        if self._mode == "resident":
            names += [name for name in os.environ if name.startswith(_MODEL_ENVIRONMENT)]
            threads = {}
        else:
            # a process that forks must have no threads, and many calls run side by side
            threads = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
        environment = {name: os.environ[name] for name in names} | threads
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "serve.tools.worker", self._mode, str(theirs.fileno()), str(self._cache_bytes)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=environment | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
            )

    def _stop_locked(self) -> None:
        if self._control is not None:
            self._control.close()  # it ends by itself on that
            self._control = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        with self._lock:
            self._stop_locked()

    def kill_call(self, pid: int) -> None:
        """End a call that ran out of time, with the processes that it started."""
        with contextlib.suppress(ProcessLookupError):
            if self._mode == "fork":
                os.killpg(pid, signal.SIGKILL)
            else:
                os.kill(pid, signal.SIGKILL)  # the models are lost; the next call starts the worker again


class ToolRunner:
    """Runs tools in warm worker processes: one that forks per call, and one that keeps models.

    Safe to use from several threads. Calls of tools without a model run side by side; those with one run one after
    another. Edge detection on a 640 x 480 picture takes 50 to 80 ms in all on two busy cores (docs/tools.md).
    """

    def __init__(self, model_cache_bytes: int = MODEL_CACHE_BYTES) -> None:
        self._fork = _Worker("fork", 0)
        self._resident = _Worker("resident", model_cache_bytes)
        self._resident_turn = threading.Lock()
        self.model_counts: dict[str, int] = {}

    def start(self, has_models: bool) -> None:
        """Start the worker of tools with a model, or of those without, ahead of the first call; does not wait."""
        (self._resident if has_models else self._fork).start()

    def run(
        self, spec: ToolSpec, values: Mapping[str, Any], media: Mapping[str, bytes], limits: ToolLimits = DEFAULT_LIMITS
    ) -> ToolOutput:
        """Check the arguments, decode the media and call the tool's function.

        Args:
            spec: the tool.
            values: argument name -> value; that of a medium is an artifact's id.
            media: artifact id -> the file's bytes.
            limits: what the call may use; time and memory of the spec hold where they are lower.

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
            return self._call(self._fork, spec, call, blocks, limits, deadline)
        if not self._resident_turn.acquire(timeout=limits.timeout_s):
            raise ToolError("timeout", f"{spec.call_name} waited {limits.timeout_s:g} s for its turn; try again later.")
        try:
            return self._call(self._resident, spec, call, blocks, limits, deadline)
        finally:
            self._resident_turn.release()

    def _call(
        self,
        worker: _Worker,
        spec: ToolSpec,
        call: dict[str, Any],
        blocks: list[bytes],
        limits: ToolLimits,
        deadline: float,
    ) -> ToolOutput:
        request = {"file": call["file"], "timeout_s": limits.timeout_s, "memory_mb": limits.memory_mb}
        pid = None
        try:
            sock, pid = worker.submit(request, max(deadline, time.monotonic() + START_S))
            deadline = time.monotonic() + limits.timeout_s  # a start of the worker itself is not the call's fault
            with sock:
                send_message(sock, call, blocks, deadline)
                reply, files = receive_message(sock, limits.max_output_bytes, deadline)
        except TimeoutError as error:
            if pid is not None:
                worker.kill_call(pid)
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
        self.model_counts = reply.get("cache", self.model_counts)
        if "code" in reply:
            raise ToolError(reply["code"], f"{spec.call_name}: {reply['message']}")
        return ToolOutput(reply["text"], ToolFile(files[0], reply["media_type"]) if files else None)

    def close(self) -> None:
        """End the worker processes."""
        self._fork.stop()
        self._resident.stop()


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
    module = inspect.getmodule(spec.run)
    is_ours = module is not None and module.__name__.startswith("serve.tools.")
    return {
        "module": spec.run.__module__,
        "file": None if is_ours else os.path.abspath(inspect.getfile(spec.run)),
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
