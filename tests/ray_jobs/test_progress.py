"""Progress as it is seen: a bar on a terminal, plain lines in a pipe."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from terminal import show_on_terminal, strip_codes

import ray_jobs.progress
from ray_jobs.progress import Progress

REPO = Path(__file__).resolve().parents[2]
JOB = """
import sys
from ray_jobs.progress import Progress
with Progress("embed") as progress:
    for done in range(0, 41):
        note = "loss=2.0 " + 9 * "more=3.0 " if "long" in sys.argv else f"quarantined={done // 20}"
        progress.show(done, 40, "media", note)
    print("a line of another")
    progress.show(3, None, "files")
    if "fail" in sys.argv:
        raise RuntimeError("a real error")
"""
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")


def run_on_terminal(*arguments: str, **env: str) -> str:
    """What the job writes to a terminal of 100 columns."""
    command = [sys.executable, "-c", JOB, *arguments]
    return show_on_terminal(command, os.environ | {"TERM": "xterm", "COLUMNS": "100"} | env)[0]


def test_a_terminal_sees_a_bar_that_fills() -> None:
    shown = run_on_terminal()
    assert "\x1b[" in shown
    text = strip_codes(shown)
    assert re.search(r"embed +━+ +40/40 media 100% took 0:0\d quarantined=2", text), text
    assert "a line of another" in text
    assert re.search(r"embed +━+ +3/3 +files 100%", text), "what nobody could know beforehand is complete at the end"
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1, "the cursor is given back"


def test_on_a_narrow_terminal_a_bar_stays_one_line() -> None:
    frames = re.split(r"[\r\n]+", strip_codes(run_on_terminal("long", COLUMNS="80")))
    assert [frame for frame in frames if re.fullmatch(r"embed ━{16} 40/40 media 100% took 0:0\d loss=.*… *", frame)], (
        frames
    )
    strangers = [frame for frame in frames if frame.strip() and not frame.startswith(("embed ", "a line of another"))]
    assert not strangers, "nothing is wrapped"


def test_an_error_gives_the_terminal_back_and_is_seen() -> None:
    shown = run_on_terminal("fail")
    assert "RuntimeError: a real error" in shown
    assert shown.index("\x1b[?25h") < shown.index("RuntimeError"), "the bar has gone before the error is printed"
    assert "files 100%" not in strip_codes(shown), "what failed is not complete"


def test_a_dumb_terminal_gets_lines() -> None:
    assert not CONTROL.search(run_on_terminal(TERM="dumb").replace("\r\n", "\n"))


def test_a_pipe_gets_plain_lines() -> None:
    command = [sys.executable, "-c", JOB]
    env = os.environ | {"FORCE_COLOR": "1"}  # as some build services set it
    result = subprocess.run(command, cwd=REPO, env=env, capture_output=True, text=True, timeout=60, check=True)
    assert not CONTROL.search(result.stdout), result.stdout
    lines = [re.sub(r"took 0:\d\d", "took TIME", line) for line in result.stdout.splitlines()]
    assert lines == [
        "a line of another",
        "embed     40/40 media, 100 %, took TIME; quarantined=2",
        "embed     3/3 files, 100 %, took TIME",
    ]


def test_lines_say_rate_and_time_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """On a clock of our own: forty items at two a second, a line every ten seconds."""
    clock = [0.0]
    monkeypatch.setattr(ray_jobs.progress.time, "monotonic", lambda: clock[0])
    with Progress("train") as progress:
        progress.show(0, 40, "steps")
        for done in range(1, 41):
            clock[0] += 0.5 if done < 24 else 100.0
            progress.show(done, 40, "steps", f"loss={done}")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "train     20/40 steps, 50 %, 2.0/s, 0:10 left; loss=20"
    assert lines[-1] == "train     40/40 steps, 100 %, took 28:32; loss=40"
    assert all(line.startswith("train ") and "/40 steps, " in line for line in lines)


def test_slow_and_unknown_work_has_lines_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr(ray_jobs.progress.time, "monotonic", lambda: clock[0])
    with Progress("prepare") as progress:
        progress.show(0, None, "records")
        for done in (1, 2, 3):
            clock[0] += 12.5
            progress.show(done, None, "records")
    assert capsys.readouterr().out.splitlines() == [
        "prepare   1 records",
        "prepare   2 records, 0.08/s",
        "prepare   3 records, 0.08/s",
        "prepare   3/3 records, 100 %, took 0:38",
    ]


def test_what_was_not_heard_of_a_job_is_made_good_at_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("train") as progress:
        progress.show(7, 440, "steps", "loss=2.0")
        progress.reach(440)
    assert capsys.readouterr().out.startswith("train     440/440 steps, 100 %, took ")
