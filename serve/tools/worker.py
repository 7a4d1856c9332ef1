"""The process in which tools run; `launch.py` shuts it in and starts it, `run.py` asks it.

One kind has everything imported and forks for each call: a call starts in milliseconds, in a clean process with limits
of its own, shut in by `sandbox/confine.py`, and all that it has started ends with it. The other runs calls one after
another itself and keeps the models that they load. Both end when the replica that started them does.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import resource
import select
import shutil
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2

from data_pipeline.errors import InputError, MediaError
from data_pipeline.media.limits import MediaLimits
from serve.tools.media import ToolLimits, decode_media
from serve.tools.sandbox import kernel
from serve.tools.sandbox.confine import Mechanisms, enter_call
from serve.tools.spec import ToolError, ToolOutput
from serve.tools.tool_file import load_tool_file
from serve.tools.wire import WireError, receive_message, send_message

MAX_CONTROL_BYTES = 64 * 1024
GRACE_S = 2.0  # beyond a call's time, in which the replica usually ends it itself


def _find_function(call: dict[str, Any]) -> Callable[..., ToolOutput]:
    if call["module"].startswith("serve.tools."):
        found: Any = importlib.import_module(call["module"])
    else:
        found = load_tool_file(call["file"])
    for part in call["qualname"].split("."):
        found = getattr(found, part)
    return found


def _answer(sock: socket.socket, models: Any) -> None:
    """Receive one call, do it and send what came of it."""
    call, blocks = receive_message(sock, max_block_bytes=2**40)
    limits: ToolLimits = _limits(call["limits"])
    blobs = iter(blocks)
    try:
        arguments = {
            name: decode_media(kind, next(blobs), limits) if kind else value for name, kind, value in call["arguments"]
        }
        function = _find_function(call)
        leading = (models, *call["model_ids"]) if call["model_ids"] else ()
        output = function(*leading, **arguments)
        _check_output(output, limits)
    except ToolError as error:
        reply = {"code": error.code, "message": error.message}
    except MediaError as error:
        reply = {"code": "bad_media", "message": str(error)}
    except InputError as error:
        reply = {"code": "bad_arguments", "message": str(error)}
    except Exception as error:  # noqa: BLE001 - whatever a tool raises, its caller gets one sentence and the log the rest
        if _is_out_of_memory(error):
            reply = {
                "code": "out_of_memory",
                "message": "it needed more memory than a call may use; give it smaller media.",
            }
        else:
            traceback.print_exc()
            reply = {"code": "failed", "message": f"it failed on this input ({type(error).__name__})."}
    else:
        file = output.file
        reply = {"text": output.text, "media_type": file.media_type if file else None}
        send_message(sock, reply | _cache_counts(models), [file.data] if file else [])
        return
    send_message(sock, reply | _cache_counts(models))


def _cache_counts(models: Any) -> dict[str, Any]:
    return {} if models is None else {"cache": models.counts()}


def _limits(fields: dict[str, Any]) -> ToolLimits:
    others = {name: value for name, value in fields.items() if name != "media"}
    return ToolLimits(media=MediaLimits(**fields["media"]), **others)


def _check_output(output: Any, limits: ToolLimits) -> None:
    if not isinstance(output, ToolOutput):
        raise ToolError("failed", f"its function returned {type(output).__name__}; it has to return a ToolOutput.")
    n_bytes = len(output.file.data) if output.file else 0
    if n_bytes > limits.max_output_bytes or len(output.text) > limits.max_output_chars:
        raise ToolError(
            "failed",
            f"its result has {n_bytes:,} bytes and {len(output.text):,} characters; at most "
            f"{limits.max_output_bytes:,} and {limits.max_output_chars:,} are allowed, so give it smaller media.",
        )


def _is_out_of_memory(error: Exception) -> bool:
    no_memory = isinstance(error, cv2.error) and getattr(error, "code", None) == cv2.Error.StsNoMem
    return isinstance(error, MemoryError) or no_memory or "bad_alloc" in str(error)


@dataclass(frozen=True)
class _Call:
    """A call under way: its process, a descriptor that tells of its end, the line to the replica, and its time."""

    pid: int
    pidfd: int
    sock: socket.socket
    deadline: float
    folder: Path | None


class _ForkServer:
    """Forks a process for each call, and ends it when it is done, when its time is over or when nobody waits for it."""

    def __init__(
        self, control: socket.socket, mechanisms: Mechanisms, folder: str, users: range, *, has_network: bool
    ) -> None:
        self._control = control
        self._mechanisms = mechanisms
        self._folder = folder
        self._users = users
        self._has_network = has_network
        self._n_calls = 0
        self._calls: dict[int, _Call] = {}  # by both descriptors
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)
        self._pids = os.open("/proc/self/ns/pid", os.O_RDONLY)

    def serve(self) -> None:
        """Until the replica closes its end of the control socket."""
        while True:
            left_s = min((call.deadline - time.monotonic() for call in self._calls.values()), default=None)
            for fd, _ in self._poll.poll(None if left_s is None else max(0, math.ceil(left_s * 1e3))):
                if fd == self._control.fileno():
                    message, fds, _, _ = socket.recv_fds(self._control, MAX_CONTROL_BYTES, 1)
                    if not message:
                        for call in set(self._calls.values()):
                            self._end(call)
                        return
                    self._begin(json.loads(message), socket.socket(fileno=fds[0]))
                elif fd in self._calls:
                    self._end(self._calls[fd])
            now = time.monotonic()
            for call in {call for call in self._calls.values() if call.deadline <= now}:
                self._end(call)

    def _begin(self, request: dict[str, Any], sock: socket.socket) -> None:
        if request["file"] is not None:
            with contextlib.suppress(Exception):  # a broken file is reported by the call itself
                load_tool_file(request["file"])
        self._n_calls += 1
        folder = None
        if self._mechanisms.user == "shared":
            folder = Path(self._folder, str(self._n_calls))
            folder.mkdir(mode=0o700)
        else:  # the next child begins a namespace of its own, within this process' one
            kernel.return_to_pids(self._pids)
            kernel.unshare(kernel.NEW_PIDS)
        pid = os.fork()
        if pid == 0:
            self._run(request, sock, str(folder or self._folder))
        deadline = time.monotonic() + request["timeout_s"] + GRACE_S
        call = _Call(pid, os.pidfd_open(pid), sock, deadline, folder)
        self._calls[call.pidfd] = self._calls[sock.fileno()] = call
        self._poll.register(call.pidfd, select.POLLIN)
        self._poll.register(sock, 0)  # nothing but the replica's hanging up
        self._control.send(b"{}")

    def _run(self, request: dict[str, Any], sock: socket.socket, folder: str) -> None:
        """In the child; does not return."""
        status = 1
        try:
            kept = sock.fileno()
            os.closerange(3, kept)  # the lines of other calls are not this one's
            os.closerange(kept + 1, 2**31 - 1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.setsid()  # one group with whatever the tool starts, such as Tesseract
            _limit_memory(request["memory_mb"])
            user = self._users[self._n_calls % len(self._users)]
            enter_call(self._mechanisms, user, folder, request["readable"], has_network=self._has_network)
            with contextlib.suppress(WireError):
                _answer(sock, None)
            status = 0
        except OSError:
            traceback.print_exc()
        finally:
            os._exit(status)  # without the parent's exit handlers

    def _end(self, call: _Call) -> None:
        self._poll.unregister(call.pidfd)
        self._poll.unregister(call.sock)
        del self._calls[call.pidfd], self._calls[call.sock.fileno()]
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(call.pidfd, signal.SIGKILL)
        os.waitpid(call.pid, 0)
        os.close(call.pidfd)
        if call.folder is not None:
            _kill_strays({other.pid for other in self._calls.values()})
            with contextlib.suppress(RecursionError):
                shutil.rmtree(call.folder, ignore_errors=True)
        call.sock.close()  # last: the replica takes it for the call's end


def _kill_strays(known: set[int]) -> None:
    """End what calls have left behind, whose parent this process has become: children of its own that it knows not."""
    for _ in range(1000):  # what is killed leaves its own children behind
        strays = [pid for pid in _children() if pid not in known]
        if not strays:
            return
        for pid in strays:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _children() -> Iterator[int]:
    return map(int, Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split())


def _limit_memory(memory_mb: int) -> None:
    """Bind the forked child.

    Address space and not resident memory: the kernel refuses the very allocation that is too large, so NumPy, OpenCV
    and FFmpeg report it, where a watcher of resident memory would come too late for one large allocation and could only
    kill. The limit lies `memory_mb` above what the idle process has mapped, for shared libraries count as address
    space; libraries run on one thread here, so stacks and arenas of threads do not eat into it.
    """
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    allowed = pages * resource.getpagesize() + memory_mb * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))


def serve_forking(fd: int, mechanisms: Mechanisms, folder: str, users: range, *, has_network: bool) -> None:
    """Run each call in a process of its own, until the replica closes its end of the control socket.

    Args:
        fd: the control socket.
        mechanisms: that shut calls in.
        folder: what each call finds its private folder at.
        users: numbers for users of their own.
        has_network: whether these tools may use the network.
    """
    cv2.setNumThreads(1)
    from serve.tools import all_tools  # noqa: F401 - so that no child has to import the libraries

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the replica decides when to end
    _ForkServer(socket.socket(fileno=fd), mechanisms, folder, users, has_network=has_network).serve()


def serve_models(fd: int, cache_bytes: int) -> None:
    """Run the calls of tools with models here, one after another; `cache_bytes` are for models that stay loaded."""
    control = socket.socket(fileno=fd)
    cv2.setNumThreads(1)
    import torch  # noqa: F401 - they take seconds, for which no call shall pay
    import transformers  # noqa: F401

    from serve.tools.models import ModelCache

    models = ModelCache(cache_bytes)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        message, fds, _, _ = socket.recv_fds(control, MAX_CONTROL_BYTES, 1)
        if not message:
            return
        request = json.loads(message)
        with socket.socket(fileno=fds[0]) as sock:
            control.send(b"{}")
            alarm = threading.Timer(request["timeout_s"] + GRACE_S, os._exit, (1,))
            alarm.daemon = True
            alarm.start()
            with contextlib.suppress(WireError):
                _answer(sock, models)
            alarm.cancel()
