"""Databases in files: where they lie, and whether they open."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from ray_jobs.config import load_run_spec
from ray_jobs.doctor import tracking
from ray_jobs.doctor.checks import Finding
from ray_jobs.doctor.tracking import check_tracking, network_kind

MOUNTS = r"""/dev/sda1 / ext4 rw 0 0
tmpfs /tmp tmpfs rw 0 0
fs-1.efs.eu-west-1.amazonaws.com:/ /mnt/shared nfs4 rw,vers=4.1 0 0
/dev/sdb1 /mnt/shared/fast ext4 rw 0 0
bucket /mnt/my\040bucket fuse.s3fs rw 0 0
overlay /mnt/over fuse.fuse-overlayfs rw 0 0
"""


def check(database: Path) -> Finding:
    return check_tracking(load_run_spec(None, [f"tracking.uri=sqlite:///{database}", f"runs_dir={database.parent}"]))


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("/srv/mlflow.db", ""),
        ("/mnt/shared/runs/mlflow.db", "nfs4"),
        ("/mnt/shared/fast/mlflow.db", ""),
        ("/mnt/shared-not/mlflow.db", ""),
        ("/mnt/my bucket/mlflow.db", "fuse.s3fs"),
        ("/mnt/over/mlflow.db", ""),
    ],
)
def test_the_file_system_of_a_database(file: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / "mounts").write_text(MOUNTS)
    assert network_kind(Path(file), tmp_path / "mounts") == kind
    assert network_kind(Path(file), tmp_path / "no such file") == ""


def test_sqlite_on_the_network_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check(tmp_path / "mlflow.db").state == "ok"
    monkeypatch.setattr(tracking, "network_kind", lambda file, mounts: "nfs4")
    finding = check(tmp_path / "mlflow.db")
    assert (finding.state, "(nfs4)" in finding.found, "run an MLflow server" in finding.cure) == ("warning", True, True)
    assert not (tmp_path / "mlflow.db").exists()


def test_a_database_that_does_not_open_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "_LOCK_S", 0.05)
    damaged, held = tmp_path / "damaged.db", tmp_path / "held.db"
    damaged.write_bytes(b"no database at all, but long enough for its header" * 40)
    finding = check(damaged)
    assert (finding.state, "file is not a database" in finding.found) == ("fails", True)
    other = sqlite3.connect(held)
    other.execute("begin exclusive")
    assert "database is locked" in check(held).found
    other.close()
    (tmp_path / "file").touch()
    finding = check(tmp_path / "file" / "mlflow.db")
    assert (finding.state, "nothing can be made in" in finding.found) == ("fails", True)
