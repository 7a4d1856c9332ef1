"""How far a job is: a bar where stdout is a terminal, elsewhere a line every ten seconds."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TaskID, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bars
from rich.table import Column
from rich.text import Text

LINE_EVERY_S = 10.0


class Progress:
    """Shows one job, which may count several things one after the other. Use it as a context manager.

    Args:
        what: the job, in front of its bars and lines.
    """

    def __init__(self, what: str) -> None:
        console = Console()
        self._what = what
        self._is_bar = sys.stdout.isatty() and console.is_interactive  # the latter is false on a dumb terminal
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=16, table_column=Column(no_wrap=True)),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}", markup=False),
            TaskProgressColumn(),
            _RateColumn(table_column=Column(no_wrap=True)),
            _NoteColumn(),
            console=console,
            get_time=time.monotonic,
            disable=not self._is_bar,
            redirect_stderr=sys.stderr.isatty(),  # else errors would leave the file that they were sent to
        )
        self._task_id: TaskID | None = None
        self._said_s = 0.0

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error_type is None:
            self._complete()
        self._bars.stop()

    def show(self, done: int, total: int | None, unit: str, note: str = "") -> None:
        """Take note of how much is done.

        Args:
            done: so many.
            total: of so many; None where nobody knows yet.
            unit: what is counted, in the plural. Another unit than before starts another bar: the former is complete.
            note: what else is worth knowing.
        """
        if self._task_id is None or unit != self._task.fields["unit"]:
            self._complete()
            self._task_id = self._bars.add_task(self._what, total=total, completed=done, unit=unit, note=note)
            self._said_s = time.monotonic()
        self._bars.update(self._task_id, completed=done, total=total, note=note)
        if not self._is_bar and time.monotonic() - self._said_s >= LINE_EVERY_S:
            self._said_s = time.monotonic()
            print(_render_line(self._task), flush=True)

    def reach(self, done: int) -> None:
        """What is counted has come so far, whatever was heard of it: news of a job may be lost on their way."""
        if self._task_id is not None:
            self._bars.update(self._task_id, completed=done)

    @property
    def _task(self) -> Task:
        assert self._task_id is not None
        return next(task for task in self._bars.tasks if task.id == self._task_id)

    def _complete(self) -> None:
        """All is done, where it was not known how much there is, too."""
        if self._task_id is None:
            return
        self._bars.update(self._task_id, total=self._task.completed)
        if not self._is_bar:
            print(_render_line(self._task), flush=True)


class _RateColumn(ProgressColumn):
    """Rate and time left, as in the lines."""

    def render(self, task: Task) -> Text:
        return Text(", ".join(_render_rate(task)))


class _NoteColumn(ProgressColumn):
    """The note, cut where the terminal ends: of all columns this one may be narrowed, and it stays one line."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["note"], style="dim", no_wrap=True, overflow="ellipsis")


def _render_line(task: Task) -> str:
    done, total, unit = int(task.completed), task.total, task.fields["unit"]
    parts = [f"{done} {unit}"] if total is None else [f"{done}/{int(total)} {unit}", f"{task.percentage:.0f} %"]
    parts += _render_rate(task)
    note = task.fields["note"]
    return f"{task.description:<9} {', '.join(parts)}" + (f"; {note}" if note else "")


def _render_rate(task: Task) -> list[str]:
    """Rate and time left; at the end the time that it took."""
    if task.finished:
        return [f"took {_render_time(task.finished_time or 0.0)}"]
    parts = []
    if task.speed is not None:
        parts.append(f"{task.speed:.1f}/s" if task.speed >= 1 else f"{task.speed:.2g}/s")
    if task.time_remaining is not None:
        parts.append(f"{_render_time(task.time_remaining)} left")
    return parts


def _render_time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
