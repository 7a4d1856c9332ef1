"""`doctor` on a real Ray: ready where a job would run, exit code 1 and the cure where it would not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ray_jobs.cli import main

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


def diagnose(capsys: pytest.CaptureFixture[str], *overrides: str) -> tuple[int, dict[str, dict[str, str]], str]:
    """Exit code, findings by what was looked at, and what people read."""
    code = main(["doctor", *overrides])
    text, _, last = capsys.readouterr().out.rstrip("\n").rpartition("\n")
    report: dict[str, Any] = json.loads(last)
    assert report["ok"] == (code == 0)
    return code, {finding["what"]: finding for finding in report["findings"]}, text


def test_a_machine_that_is_ready(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = tmp_path / "runs"
    code, findings, text = diagnose(capsys, "--config", "demo", f"runs_dir={runs}")
    assert code == 0, text
    warnings = {name for name, finding in findings.items() if finding["state"] == "warning"}
    assert warnings <= {"corpus", "/dev/shm", "memory"}, "the last where other tests have filled it"
    assert findings["corpus"]["cure"] == "run `prepare` first"
    assert findings["encoder"]["found"].startswith("tiny_imagebind-")
    assert "torch 2." in findings["packages"]["found"]
    assert text.splitlines()[-1] == "ready"
    assert not (runs / "demo").exists(), "looking leaves nothing"


def test_a_dead_tracking_server_and_too_many_workers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uri = "http://someone:secret@127.0.0.1:9"
    settings = (f"runs_dir={tmp_path}", f"tracking.uri={uri}", "train.workers=64")
    code, findings, text = diagnose(capsys, "--config", "demo", *settings)
    assert code == 1
    assert findings["tracking"]["state"] == "fails"
    assert "does not answer" in findings["tracking"]["found"]
    assert findings["workers"]["state"] == "fails"
    assert "secret" not in text
    assert text.splitlines()[-1] == "2 finding(s) would make the job fail"


def test_a_folder_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("no folder")
    code, findings, _ = diagnose(capsys, "--config", "demo", f"runs_dir={tmp_path / 'file' / 'runs'}")
    assert code == 1
    assert findings["run folder"]["state"] == "fails"
    assert "set runs_dir" in findings["run folder"]["cure"]
