"""`doctor`: what would keep a job from running, on every node, before it spends money."""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from data_pipeline import storage
from data_pipeline.corpus.files import Corpus
from data_pipeline.errors import InputError
from ray_jobs.cluster import connect
from ray_jobs.config import RunSpec
from ray_jobs.doctor import checks
from ray_jobs.doctor.checks import Finding
from ray_jobs.doctor.nodes import NodeFacts, look_at_nodes
from ray_jobs.estimate.dry_run import estimate_worker
from ray_jobs.places import hide_secrets
from ray_jobs.tracking.client import TRANSIENT, build_client, sqlite_file
from ray_jobs.train.checkpoint import count_bytes
from ray_jobs.train.run_folder import shown_to_all

_TOKEN_BYTES = 4 * 2  # of an id, and as much again for its loss mask and offsets
_CHARS_PER_TOKEN = 4
_MARKS = {"ok": "ok", "warning": "!", "fails": "FAILS"}


def run(spec: RunSpec) -> dict[str, Any]:
    """Look, print the findings with their cures; `ok` is false where the job would fail."""
    connect(spec.ray)
    findings = examine(spec)
    for finding in findings:
        print(f"{_MARKS[finding.state]:<7}{finding.what:<14}{finding.found}")
        if finding.cure:
            print(f"{'':<21}cure: {finding.cure}")
    failing = sum(finding.state == "fails" for finding in findings)
    print(f"\n{'ready' if not failing else f'{failing} finding(s) would make the job fail'}")
    return {"ok": not failing, "findings": [finding.to_json() for finding in findings]}


def examine(spec: RunSpec) -> list[Finding]:
    """All findings, in the order in which a job would meet them."""
    was_there = storage.exists(spec.run_dir) if isinstance(spec.run_dir, Path) else True
    proof = spec.run_dir / f".doctor-{uuid.uuid4().hex}"
    try:
        with shown_to_all(proof):
            nodes, silent = look_at_nodes(spec, proof)
    except OSError as error:
        cure = "give this user the right to write there, or set runs_dir to another folder"
        return [Finding("run folder", "fails", f"{spec.run_dir} cannot be written: {error}", cure)]
    finally:
        if not was_there:
            with contextlib.suppress(OSError):
                Path(str(spec.run_dir)).rmdir()
    findings = [checks.check_answers(nodes, silent)]
    if not nodes:
        return findings
    findings += [
        checks.check_versions(nodes),
        checks.check_gpus(spec, nodes),
        checks.check_resources(spec, nodes),
        checks.check_storage(spec, nodes),
        *_check_sizes(spec, nodes),
        checks.check_encoder(nodes),
        check_tracking(spec),
        checks.check_confinement(nodes),
        checks.check_token(nodes, os.environ),
    ]
    return findings


def _check_sizes(spec: RunSpec, nodes: list[NodeFacts]) -> list[Finding]:
    """Disk, object store and memory, as far as backbone and corpus are known."""
    findings = []
    try:
        worker_bytes, n_trained = estimate_worker(spec)
    except InputError as error:
        findings.append(Finding("memory", "warning", f"cannot be told: {error}", "mend that, or `train` meets it"))
    else:
        findings += [checks.check_memory(spec, nodes, worker_bytes), checks.check_disk(nodes, count_bytes(n_trained))]
    try:
        corpus = Corpus.open(spec.corpus_dir)
    except InputError:
        findings.append(Finding("corpus", "warning", f"there is none at {spec.corpus_dir}", "run `prepare` first"))
    else:
        chars = sum(len(record.instruction) + 40 for record in corpus.records("train"))
        findings += checks.check_object_store(nodes, chars * _TOKEN_BYTES // _CHARS_PER_TOKEN)
    return findings


def check_tracking(spec: RunSpec) -> Finding:
    """Whether MLflow answers; a database in a file is made by the first job."""
    try:
        uri = spec.tracking_uri
        if sqlite_file(uri) is not None:
            return Finding("tracking", "ok", f"{hide_secrets(uri)}, a file that the first job makes")
        for name, value in (("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0"), ("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")):
            os.environ.setdefault(name, value)
        build_client(uri).search_experiments(max_results=1)
    except InputError as error:
        return Finding("tracking", "fails", str(error), "mend that in tracking.uri")
    except (*TRANSIENT, MlflowException, SQLAlchemyError) as error:
        reason = hide_secrets(" ".join(str(error).split()))[:200]
        cure = "start the server, or set tracking.uri to one that runs"
        return Finding("tracking", "fails", f"{hide_secrets(uri)} does not answer: {reason}", cure)
    return Finding("tracking", "ok", f"{hide_secrets(uri)} answers")
