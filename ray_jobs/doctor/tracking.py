"""Whether the tracking store can be used: a server that answers, a database in a file that opens."""

from __future__ import annotations

import os
import re
import sqlite3
from pathlib import Path

from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from data_pipeline.errors import InputError
from ray_jobs.config import RunSpec
from ray_jobs.doctor.checks import Finding
from ray_jobs.places import hide_secrets
from ray_jobs.tracking.client import TRANSIENT, build_client, sqlite_file

# file systems of several machines, on which SQLite's locks do not hold, or hold everybody up
NETWORK = ("nfs", "nfs4", "cifs", "smb3", "efs", "lustre", "ceph", "glusterfs", "beegfs", "gpfs")
NETWORK_BY_FUSE = ("sshfs", "s3fs", "gcsfuse", "mount-s3", "juicefs", "glusterfs", "ceph-fuse")
_LOCK_S = 5.0  # that another one's transaction may take
_SERVER = "run an MLflow server and set tracking.uri, or MLFLOW_TRACKING_URI, to its address (http://HOST:5000)"


def check_tracking(spec: RunSpec) -> Finding:
    """Whether MLflow answers, or a database in a file can be written; the first job makes one that is not there."""
    kind = ""
    try:
        uri = spec.tracking_uri
        shown = hide_secrets(uri)
        answer = f"{shown} answers"
        database = sqlite_file(uri)
        if database is not None:
            if fault := _find_fault(database):
                return Finding("tracking", "fails", f"{shown} cannot be used: {fault}", f"mend that, or {_SERVER}")
            kind = network_kind(database, Path("/proc/mounts"))
        if database is None or database.exists():
            for name, value in (("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0"), ("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")):
                os.environ.setdefault(name, value)
            build_client(uri).search_experiments(max_results=1)
        else:
            answer = f"{shown}, a file that the first job makes"
    except InputError as error:
        return Finding("tracking", "fails", str(error), "mend that in tracking.uri")
    except (*TRANSIENT, MlflowException, SQLAlchemyError) as error:
        reason = hide_secrets(" ".join(str(error).split()))[:200]
        cure = "start the server, or set tracking.uri to one that runs"
        return Finding("tracking", "fails", f"{shown} does not answer: {reason}", cure)
    if kind:
        found = f"{shown} is SQLite on a file system of the network ({kind}), where its locks do not hold"
        return Finding("tracking", "warning", found, _SERVER)
    return Finding("tracking", "ok", answer)


def network_kind(file: Path, mounts: Path) -> str:
    """The kind of file system of the network that a file lies on, or would; "" for one of this machine.

    Args:
        file: need not be there.
        mounts: as /proc/mounts: device, mount point, kind and more a line.
    """
    where, kind = Path("/"), ""
    folders = {file.parent.resolve(), *file.parent.resolve().parents}
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        return ""
    for line in lines:
        _, point, its_kind, *_ = line.split(" ")
        point = Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), point))
        if point in folders and len(point.parts) >= len(where.parts):  # the later one covers the former
            where, kind = point, its_kind
    return kind if kind in NETWORK or kind.removeprefix("fuse.") in NETWORK_BY_FUSE else ""


def _find_fault(database: Path) -> str:
    """Why a database, or its first one, cannot be written; "" where it can. Nothing is made or changed."""
    if not database.exists():
        folder = next(path for path in database.parents if path.exists())
        return "" if os.access(folder, os.W_OK | os.X_OK) else f"nothing can be made in {folder}"
    if database.is_dir():
        return ""  # MLflow's client has a better word for it
    try:
        connection = sqlite3.connect(f"{database.absolute().as_uri()}?mode=rw", uri=True, timeout=_LOCK_S)
        try:
            connection.execute("begin immediate")
            connection.execute("select count(*) from sqlite_master")
            connection.rollback()
        finally:
            connection.close()
    except sqlite3.Error as error:
        return str(error)
    return ""
