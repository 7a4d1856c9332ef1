"""A process that the service starts to be shut in: one of a module that ends in a loop of calls."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from typing import Any

from serve.tools.wire import WireError
from serve.tools.work_folder import WorkFolder

START_S = 120.0  # for a worker's imports on a slow machine
STOP_S = 1.0  # for a worker to end what it has forked
# The environment of such processes: what programs need to run, and none of the service's secrets.
_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "TESSDATA_PREFIX", "SSL_CERT_FILE")


class WorkerProcess:
    """One process of a module, started at the first call and again after its death."""

    def __init__(self, *command: str, variables: tuple[str, ...] = (), is_resident: bool = False) -> None:
        """Say what is to be started.

        Args:
            command: a module and its leading arguments; what follows are the descriptor of the control socket, an
                empty folder, and the readable files as JSON.
            variables: beginnings of the names of further environment variables that it gets.
            is_resident: whether it runs the calls itself, and not in processes that it forks.
        """
        self._command = command
        self._variables = variables
        self._is_resident = is_resident
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._folder: WorkFolder | None = None
        self._readable: set[str] = set()

    def submit(self, request: dict[str, Any], deadline: float) -> socket.socket:
        """Begin a call.

        Args:
            request: what the process has to know before the call itself; "readable" are files that it opens.
            deadline: value of `time.monotonic` until which a running process may take it.

        Returns:
            the socket to talk to it over; closing it ends a call that was forked.

        Raises:
            TimeoutError: the worker did not take it before the deadline.
            WireError: the worker cannot be started.
        """
        ours, theirs = socket.socketpair()
        try:
            with theirs, self._lock:
                for attempt in range(2):
                    try:
                        self._start_locked(request["readable"])
                        assert self._control is not None
                        self._control.settimeout(max(START_S if attempt else deadline - time.monotonic(), 0.01))
                        socket.send_fds(self._control, [json.dumps(request).encode()], [theirs.fileno()])
                        if self._control.recv(256):
                            return ours
                    except (BrokenPipeError, ConnectionResetError):
                        pass  # it died since the last call
                    self._stop_locked()
        except BaseException:
            ours.close()
            raise
        ours.close()
        raise WireError(f"the process of {self._command[0]} does not start")

    def start(self, readable: Iterable[str] = ()) -> None:
        """Start the process where none runs, and let it import what it needs while nobody waits for it."""
        with self._lock:
            self._start_locked(readable)

    def _start_locked(self, readable: Iterable[str]) -> None:
        is_running = self._process is not None and self._process.poll() is None
        if is_running and (not self._is_resident or self._readable.issuperset(readable)):
            return
        self._stop_locked()
        self._readable |= set(readable)  # a resident worker is shut in once, so for new files it starts anew
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        names = [name for name in os.environ if name in _ENVIRONMENT or name.startswith(self._variables)]
        threads = {}
        if not self._is_resident:  # a process that forks must have no threads, and many calls run side by side
            threads = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
        environment = {name: os.environ[name] for name in names} | threads
        self._folder = WorkFolder()
        words = [*self._command, str(theirs.fileno()), self._folder.path, json.dumps(sorted(self._readable))]
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *words],
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
            with contextlib.suppress(subprocess.TimeoutExpired):
                if not self._is_resident:  # which may be at work; the others end their calls first
                    self._process.wait(STOP_S)
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._folder is not None:
            self._folder.remove()
            self._folder = None

    def stop(self) -> None:
        with self._lock:
            self._stop_locked()
