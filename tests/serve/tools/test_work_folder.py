"""Folders of the tools' processes: each its own, and none stays when its owner is killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from serve.tools.work_folder import PREFIX, WorkFolder

HOLD = "from serve.tools.work_folder import WorkFolder; folder = WorkFolder(); print(folder.path, flush=True); input()"


def test_what_a_killed_process_left_goes_with_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"{PREFIX}link").symlink_to(tmp_path / "elsewhere")
    command = [sys.executable, "-c", HOLD]
    owners = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        folders = [Path((owner.stdout or sys.stdin).readline().strip()) for owner in owners]
        (folders[0] / "rest").write_text("of a call")
        owners[0].send_signal(signal.SIGKILL)
        owners[0].wait()
        own = WorkFolder()
        assert not folders[0].exists(), "its owner is dead"
        assert folders[1].is_dir(), "its owner lives"
        assert (tmp_path / "elsewhere").is_dir()
        assert Path(own.path).parent == tmp_path
        own.remove()
        assert not Path(own.path).exists()
    finally:
        for owner in owners:
            owner.kill()
            owner.communicate()
