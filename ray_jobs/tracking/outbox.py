"""Entries on their way to a server that may be away: queued, spooled to a file, sent in order by a thread of their own.

`put` costs the caller some microseconds whatever the server does. What has not been delivered lies in the spool folder
as JSON lines; when a process is killed, the next outbox of the same name takes its entries over. An entry whose answer
was lost is sent again, so `deliver` must be idempotent.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Collection, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from ray_jobs.places import hide_secrets

log = logging.getLogger(__name__)

Entry = dict[str, Any]  # what JSON can hold
SEND_INTERVAL_S = 5.0  # entries that are not urgent travel together
FIRST_BACKOFF_S = 0.5
MAX_BACKOFF_S = 15.0
WAITED_FOR_BACKOFF_S = 1.0  # longest pause between attempts while a caller waits in `flush`
MAX_ENTRIES_AT_ONCE = 1000
MAX_DELIVERED_LINES = 10_000  # that a spool file may hold for long


class Outbox:
    """A queue of entries with one sender thread and, given a folder, one spool file.

    Args:
        name: entries of a dead outbox of the same name in the same folder are taken over.
        deliver: gets the oldest entries that wait; returns how many of the leading ones it has delivered (at least
            one), or raises one of `transient`.
        transient: exceptions after which the same is tried again.
        spool_dir: where the spool file is; None keeps what waits in memory alone.
        destination: for messages.
    """

    def __init__(
        self,
        name: str,
        deliver: Callable[[Sequence[Entry]], int],
        transient: tuple[type[Exception], ...],
        spool_dir: Path | None,
        destination: str,
    ) -> None:
        self._name, self._deliver, self._transient = name, deliver, transient
        self._destination = hide_secrets(destination)
        self._waiting: deque[Entry] = deque()
        self._n_put = self._n_delivered = 0
        self._n_due = 0  # so many of those put are to be sent now
        self._n_flushing = 0
        self._is_closed = False
        self._spool = _SpoolFile(spool_dir, name) if spool_dir is not None else None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"outbox-{name}", daemon=True)
        self._thread.start()

    @property
    def spool_path(self) -> Path | None:
        """The spool file at present."""
        return self._spool.path if self._spool else None

    def put(self, entry: Entry, urgent: bool = False) -> None:
        """Queue an entry; urgent ones, and what waits before them, are sent at once."""
        with self._changed:
            if self._is_closed:
                raise ValueError(f"outbox {self._name} is closed")
            self._append(entry)
            if urgent:
                self._n_due = self._n_put
            if urgent or len(self._waiting) == 1:  # the sender starts its clock at the first entry
                self._changed.notify_all()

    def adopt(self) -> list[Entry]:
        """Take over what dead outboxes of this name left in the spool folder; returns those entries, oldest first."""
        adopted: list[Entry] = []
        for orphan in self._spool.take_orphans() if self._spool else []:
            with self._changed:
                for entry in orphan.entries:
                    self._append(entry)
                self._n_due = self._n_put
                self._changed.notify_all()
            orphan.remove()  # only now that its entries stand in our own file
            adopted += orphan.entries
        return adopted

    def flush(self, timeout_s: float) -> bool:
        """Wait until all that has been put is delivered; False where that takes longer than `timeout_s`."""
        with self._changed:
            target = self._n_due = self._n_put
            self._n_flushing += 1
            self._changed.notify_all()
            is_delivered = self._changed.wait_for(lambda: self._n_delivered >= target, timeout_s)
            self._n_flushing -= 1
            return is_delivered

    def close(self, timeout_s: float) -> list[Entry]:
        """Deliver what waits, for at most `timeout_s`, and stop; returns what is left, which the spool file keeps."""
        if not self._is_closed:
            self.flush(timeout_s)
        with self._changed:
            if not self._is_closed:
                self._is_closed = True
                self._changed.notify_all()
                if self._spool:
                    self._spool.close(keep=bool(self._waiting))
            return list(self._waiting)

    def _append(self, entry: Entry) -> None:
        self._waiting.append(entry)
        self._n_put += 1
        if self._spool:
            self._spool.append(entry)

    def _run(self) -> None:
        backoff_s, failing_since_s = FIRST_BACKOFF_S, 0.0
        while self._wait_until_due():
            with self._changed:
                entries = list(islice(self._waiting, MAX_ENTRIES_AT_ONCE))
            try:
                n_delivered = self._deliver(entries)
            except self._transient as error:
                if not failing_since_s:
                    failing_since_s = time.monotonic()
                    self._tell_failure(error)
                self._pause(backoff_s)
                backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)
                continue
            if failing_since_s:
                log.warning("%s is back after %.0f s", self._destination, time.monotonic() - failing_since_s)
            backoff_s, failing_since_s = FIRST_BACKOFF_S, 0.0
            self._forget(n_delivered)

    def _wait_until_due(self) -> bool:
        """Until something is to be sent (True) or the outbox is closed (False)."""
        with self._changed:
            if self._n_delivered >= self._n_due:
                self._changed.wait_for(lambda: self._is_closed or self._n_put > self._n_delivered)
                self._changed.wait_for(lambda: self._is_closed or self._n_due > self._n_delivered, SEND_INTERVAL_S)
                self._n_due = self._n_put
            return not self._is_closed

    def _tell_failure(self, error: Exception) -> None:
        log.warning(
            "%s does not take what is sent (%s); it waits in %s and is sent again until it is taken",
            self._destination,
            hide_secrets(" ".join(str(error).split()))[:300],
            self.spool_path or "memory",
        )

    def _pause(self, backoff_s: float) -> None:
        with self._changed:
            if self._n_flushing:
                backoff_s = min(backoff_s, WAITED_FOR_BACKOFF_S)
            n_flushing = self._n_flushing
            self._changed.wait_for(lambda: self._is_closed or self._n_flushing > n_flushing, backoff_s)

    def _forget(self, n_delivered: int) -> None:
        with self._changed:
            if self._is_closed:
                return  # what `close` returned stays as it is, and is sent again by the next outbox
            for _ in range(n_delivered):
                self._waiting.popleft()
            self._n_delivered += n_delivered
            if self._spool:
                self._spool = self._spool.shorten(self._waiting)
            self._changed.notify_all()


class _Orphan:
    """The spool file of a dead outbox, locked by us."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path, self._descriptor = path, descriptor
        self.entries: list[Entry] = []
        damaged = 0
        with os.fdopen(os.dup(descriptor), "rb") as file:
            for line in filter(bytes.strip, file):
                try:
                    self.entries.append(json.loads(line))
                except (json.JSONDecodeError, UnicodeDecodeError):
                    damaged += 1  # cut off when the process was killed or the disk was full
        if damaged:
            log.warning("%s: %d incomplete line(s) are left out", path, damaged)

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)
        os.close(self._descriptor)


class _SpoolFile:
    """JSON lines of what waits; the lock on it says that its owner lives."""

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._name = folder, name
        self._n_lines = 0
        self._is_failing = False
        while True:
            self.path = folder / f"{name}.{uuid.uuid4().hex[:12]}.jsonl"
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            if os.fstat(self._descriptor).st_nlink:
                break
            os.close(self._descriptor)  # taken for an orphan and removed before we had locked it

    def append(self, entry: Entry) -> None:
        """Add a line. A full disk must not end the training: then what waits is in memory alone."""
        self._n_lines += 1
        line = json.dumps(entry).encode() + b"\n"
        if self._is_failing:
            line = b"\n" + line  # behind half a line, perhaps
        try:
            if os.write(self._descriptor, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._is_failing = False
        except OSError as error:
            if not self._is_failing:
                log.warning("cannot write %s (%s): what is not delivered is kept in memory alone", self.path, error)
            self._is_failing = True

    def shorten(self, waiting: Collection[Entry]) -> _SpoolFile:
        """Let go of delivered lines: empty the file once nothing waits, or start another once most have been delivered.

        A process killed before that leaves delivered lines, which are sent again: `deliver` is idempotent.
        """
        if not waiting:
            os.ftruncate(self._descriptor, 0)
            self._n_lines = 0
        elif self._n_lines > max(MAX_DELIVERED_LINES, 2 * len(waiting)):
            shorter = _SpoolFile(self._folder, self._name)
            for entry in waiting:
                shorter.append(entry)
            dropped, kept = (shorter, self) if shorter._is_failing else (self, shorter)
            dropped.close(keep=False)
            return kept
        return self

    def close(self, keep: bool) -> None:
        if not keep:
            self.path.unlink(missing_ok=True)
        os.close(self._descriptor)

    def take_orphans(self) -> list[_Orphan]:
        """Spool files of this name, oldest first, whose owners are dead."""
        orphans = []
        paths = [path for path in self._folder.glob(f"{self._name}.*.jsonl") if path != self.path]
        for path in sorted(paths, key=_modified_s):
            try:
                descriptor = os.open(path, os.O_RDWR)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                continue
            orphans.append(_Orphan(path, descriptor))
        return orphans


def _modified_s(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
