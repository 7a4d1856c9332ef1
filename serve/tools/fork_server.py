"""A process with everything imported that forks for each call: started in milliseconds, clean, and ended with all that
it has started."""

from __future__ import annotations

import contextlib
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

from serve.tools.sandbox import kernel
from serve.tools.sandbox.confine import Mechanisms
from serve.tools.tool_file import load_tool_file

MAX_CONTROL_BYTES = 64 * 1024
GRACE_S = 2.0  # beyond a call's time, in which the replica usually ends it itself


@dataclass(frozen=True)
class ForkedCall:
    """What a child is told.

    Attributes:
        request: what the replica sent over the control socket.
        sock: the line to the replica.
        user: number for a user of its own.
        folder: where its private folder goes.
    """

    request: dict[str, Any]
    sock: socket.socket
    user: int
    folder: str


@dataclass(frozen=True)
class _Child:
    """A call under way: its process, a descriptor that tells of its end, the line to the replica, and its time."""

    pid: int
    pidfd: int
    sock: socket.socket
    deadline: float
    folder: Path | None


class ForkServer:
    """Forks a process for each call, and ends it when it is done, when its time is over or when nobody waits for it.

    Args:
        control: over which the replica begins calls. A request has `timeout_s`, None for a process that lives until its
            line is closed, and may have `file`, Python code that is imported here.
        mechanisms: of this machine.
        folder: an empty one of this process.
        users: numbers for users of their own.
        run: shuts the child in and does the call.
    """

    def __init__(
        self,
        control: socket.socket,
        mechanisms: Mechanisms,
        folder: str,
        users: range,
        run: Callable[[ForkedCall], None],
    ) -> None:
        self._control = control
        self._mechanisms = mechanisms
        self._folder = folder
        self._users = users
        self._run = run
        self._n_calls = 0
        self._children: dict[int, _Child] = {}  # by both descriptors
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)
        self._pids = os.open("/proc/self/ns/pid", os.O_RDONLY)

    def serve(self) -> None:
        """Until the replica closes its end of the control socket."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the replica decides when to end
        while True:
            left_s = min((child.deadline - time.monotonic() for child in self._children.values()), default=math.inf)
            for fd, _ in self._poll.poll(None if math.isinf(left_s) else max(0, math.ceil(left_s * 1e3))):
                if fd == self._control.fileno():
                    message, fds, _, _ = socket.recv_fds(self._control, MAX_CONTROL_BYTES, 1)
                    if not message:
                        for child in set(self._children.values()):
                            self._end(child)
                        return
                    self._begin(json.loads(message), socket.socket(fileno=fds[0]))
                elif fd in self._children:
                    self._end(self._children[fd])
            now = time.monotonic()
            for child in {child for child in self._children.values() if child.deadline <= now}:
                self._end(child)

    def _begin(self, request: dict[str, Any], sock: socket.socket) -> None:
        if request.get("file") is not None:
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
            user = self._users[self._n_calls % len(self._users)]
            self._live(ForkedCall(request, sock, user, str(folder or self._folder)))
        timeout_s = request["timeout_s"]
        deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s + GRACE_S
        child = _Child(pid, os.pidfd_open(pid), sock, deadline, folder)
        self._children[child.pidfd] = self._children[sock.fileno()] = child
        self._poll.register(child.pidfd, select.POLLIN)
        self._poll.register(sock, 0)  # nothing but the replica's hanging up
        self._control.send(b"{}")

    def _live(self, call: ForkedCall) -> None:
        """In the child; does not return."""
        status = 1
        try:
            kept = call.sock.fileno()
            os.closerange(3, kept)  # the lines of other calls are not this one's
            os.closerange(kept + 1, 2**31 - 1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.setsid()  # one group with whatever the tool starts, such as Tesseract
            self._run(call)
            status = 0
        except OSError:
            traceback.print_exc()
        finally:
            os._exit(status)  # without the parent's exit handlers

    def _end(self, child: _Child) -> None:
        self._poll.unregister(child.pidfd)
        self._poll.unregister(child.sock)
        del self._children[child.pidfd], self._children[child.sock.fileno()]
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
        os.waitpid(child.pid, 0)
        os.close(child.pidfd)
        if child.folder is not None:
            _kill_strays({other.pid for other in self._children.values()})
            with contextlib.suppress(RecursionError):
                shutil.rmtree(child.folder, ignore_errors=True)
        child.sock.close()  # last: the replica takes it for the call's end


def limit_memory(memory_mb: int) -> None:
    """Bind the forked child.

    Address space and not resident memory: the kernel refuses the very allocation that is too large, so NumPy, OpenCV
    and FFmpeg report it, where a watcher of resident memory would come too late for one large allocation and could only
    kill. The limit lies `memory_mb` above what the idle process has mapped, for shared libraries count as address
    space; libraries run on one thread here, so stacks and arenas of threads do not eat into it.
    """
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    allowed = pages * resource.getpagesize() + memory_mb * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))


def _kill_strays(known: set[int]) -> None:
    """End what calls have left behind, whose parent this process has become: children of its own that it knows not."""
    for _ in range(1000):  # what is killed leaves its own children behind
        strays = [pid for pid in _list_children() if pid not in known]
        if not strays:
            return
        for pid in strays:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _list_children() -> Iterator[int]:
    return map(int, Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split())
