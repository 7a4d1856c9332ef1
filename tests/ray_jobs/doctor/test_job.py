"""`doctor` says what is there, whatever is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import ray_jobs.doctor.job
from ray_jobs.cli import main


def test_it_reports_versions_hardware_and_encoders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TOOLMM_IMAGEBIND_CHECKPOINT", raising=False)
    monkeypatch.setattr(ray_jobs.doctor.job, "PACKAGES", ("torch", "no-such-package"))
    assert main(["doctor", f"runs_dir={tmp_path / 'absent'}", "name=x"]) == 0
    lines = capsys.readouterr().out.rstrip("\n").split("\n")
    report = json.loads(lines[-1])
    assert report["version_torch"][0].isdigit()
    assert report["version_no-such-package"] == "not installed"
    assert report["cores"] >= 1
    assert report["memory_gib"] > 0
    assert report["free_disk_gib"] >= 0
    assert report["tracking_uri"] == f"sqlite:///{tmp_path}/absent/x/mlflow.db"
    assert report["encoder_imagebind_huge"].startswith("not usable: ")
    assert "TOOLMM_IMAGEBIND_CHECKPOINT" in report["encoder_imagebind_huge"]
    for key, value in report.items():
        assert any(line.startswith(key) and (value == [] or str(value) in line) for line in lines[:-1]), key
    assert not (tmp_path / "absent").exists(), "looking changes nothing"
