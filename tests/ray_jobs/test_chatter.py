"""What is kept out of the command line's output, and that nothing else is."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ray_jobs.chatter import FALSE_ALARMS, SETTINGS

REPO = Path(__file__).resolve().parents[2]
PROGRAM = """
import os, sys
from ray_jobs.chatter import FALSE_ALARMS, silence_libraries
silence_libraries()
os.write(2, b"[E 1 1] core_worker.cc:1: a real error of C++ code\\n")
for alarm in FALSE_ALARMS:
    os.write(2, f"[E 1 1] core_worker.cc:2465: Actor 'x' {alarm}.\\n".encode())
os.write(2, b"bytes \\xff that are no text\\n")
print("a line of Python", file=sys.stderr)
import warnings
warnings.warn("deprecated", DeprecationWarning)
warnings.warn("a warning for the user")
if "crash" in sys.argv:
    os.write(2, b"last words\\n")
    os.abort()
"""


def run(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-c", PROGRAM, *arguments]
    return subprocess.run(command, cwd=REPO, capture_output=True, timeout=60, check=False)


def test_false_alarms_are_left_out_and_all_else_is_there() -> None:
    result = run()
    assert result.returncode == 0
    lines = result.stderr.splitlines()
    assert b"[E 1 1] core_worker.cc:1: a real error of C++ code" in lines
    assert b"bytes \xff that are no text" in lines
    assert b"a line of Python" in lines
    assert b"a warning for the user" in result.stderr
    assert b"deprecated" not in result.stderr
    assert not [alarm for alarm in FALSE_ALARMS if alarm.encode() in result.stderr]


def test_the_last_words_of_a_crash_come_through() -> None:
    result = run("crash")
    assert result.returncode == -signal.SIGABRT
    assert b"last words\n" in result.stderr


def test_the_users_own_settings_stand() -> None:
    code = "from ray_jobs.chatter import silence_libraries as s; s(); import os; print(os.environ['TQDM_DISABLE'])"
    env = os.environ | {"TQDM_DISABLE": "0"}
    result = subprocess.run([sys.executable, "-c", code], cwd=REPO, env=env, capture_output=True, timeout=60)
    assert result.stdout == b"0\n"


@pytest.mark.parametrize(
    "line",
    [
        "WARNING: 8 PYTHON worker processes have been started on node: d252 with address: 192.0.2.2, which is 4x the",
        "[2026-11-28 22:41:20,914 E 23785 23813] core_worker.cc:2465: Actor with class name: 'PreemptionWatcher' and "
        "ID: 'cc70' has constructor arguments in the object store and max_restarts > 0. If the arguments",
    ],
)
def test_ray_is_told_of_them_as_it_words_them(line: str) -> None:
    """Lines of Ray 2.60, as it printed them."""
    assert re.search(SETTINGS["RAY_DEDUP_LOGS_SKIP_REGEX"], line)


def test_no_real_line_is_skipped() -> None:
    for line in ("(raylet) the disk is full", "core_worker.cc:1: Failed to connect to GCS", "WARNING: step took long"):
        assert not re.search(SETTINGS["RAY_DEDUP_LOGS_SKIP_REGEX"], line)
