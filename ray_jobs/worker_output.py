"""What workers print, shown by the driver: what they tell of their progress as such, all else as Ray shows it.

Ray brings a worker's stdout to the driver line by line. A line that begins with `MARK` is a message to the driver.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ray._private.ray_logging import global_worker_stdstream_dispatcher
from ray._private.worker import print_to_stdstream

MARK = "toolmm-tells "
HANDLER = (
    "ray_print_logs"  # Ray's name for what shows workers' lines; it takes the handler of that name away at the end
)
LINE_EVERY_S = 10.0
PATIENCE_S = 5.0  # for lines on their way at the end of a job; Ray looks for new ones several times a second

Show = Callable[[int, int, str, str], None]  # done, total, unit, note


class _Driver:
    """What the driver does with messages; one for a process, as there is one stream of lines."""

    def __init__(self) -> None:
        self.is_connected = False
        self.show: Show | None = None
        self.has_ended = threading.Event()
        self._shown_s: dict[str, float] = {}  # by job

    def take(self, job: str, kind: str, *content: Any) -> None:
        """A message. Where no one follows the job, as in a sweep with many, lines bear its name."""
        if kind == "end":
            self.has_ended.set()
        elif kind == "line":
            print(content[0] if self.show else f"{job}: {content[0]}", flush=True)
        elif self.show is not None:
            self.show(*content)
        elif time.monotonic() - self._shown_s.get(job, -LINE_EVERY_S) >= LINE_EVERY_S:
            self._shown_s[job] = time.monotonic()
            done, total, unit, note = content
            print(f"{job}: {done}/{total} {unit}; {note}", flush=True)


_driver = _Driver()


def tell_progress(job: str, done: int, total: int, unit: str, note: str) -> None:
    """In a worker: say how far the job is; see `ray_jobs.progress.Progress.show`."""
    _tell(job, "progress", done, total, unit, note)


def tell_line(job: str, line: str) -> None:
    """In a worker: let the driver print a line."""
    _tell(job, "line", line)


def tell_end(job: str) -> None:
    """In a worker: say that nothing more comes of the job."""
    _tell(job, "end")


def _tell(*message: Any) -> None:
    # straight to stdout: Ray Train's patched `print` would show each line twice
    sys.stdout.write(MARK + json.dumps(message) + "\n")
    sys.stdout.flush()


def relay_worker_output() -> None:
    """In the driver, once connected: take the messages out of what workers print."""
    global_worker_stdstream_dispatcher.remove_handler(HANDLER)
    global_worker_stdstream_dispatcher.add_handler(HANDLER, _show_lines)
    _driver.is_connected = True


@contextmanager
def told_to(show: Show) -> Iterator[None]:
    """In the driver: give what workers tell of their progress to `show` until the block ends.

    Without an error it ends when the last line is there.
    """
    _driver.has_ended.clear()
    _driver.show = show
    try:
        yield
        if _driver.is_connected:
            _driver.has_ended.wait(PATIENCE_S)
    finally:
        _driver.show = None


def _show_lines(batch: dict[str, Any]) -> None:
    """Ray's handler of some lines of one worker; `batch` is as Ray's own handler takes it."""
    others = []
    for line in batch["lines"]:
        message = _read_message(line)
        if message is None:
            others.append(line)
        else:
            _driver.take(*message)
    if others:
        print_to_stdstream({**batch, "lines": others}, ignore_prefix=False)


def _read_message(line: str) -> list[Any] | None:
    """None for a line that is no message, or not the whole of one."""
    if not line.startswith(MARK):
        return None
    try:
        return json.loads(line.removeprefix(MARK))
    except json.JSONDecodeError:
        return None
