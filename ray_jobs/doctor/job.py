"""`doctor`: what would keep a job from running, on every node, before it spends money."""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path
from typing import Any

from data_pipeline import storage
from data_pipeline.corpus.files import Corpus
from data_pipeline.errors import InputError
from data_pipeline.locations import Location
from data_pipeline.records.schema import SPLITS
from model.llm.backbone import load_tokenizer
from model.llm.gguf import PACKAGED, find_packaged
from ray_jobs.cluster import connect
from ray_jobs.config import RunSpec
from ray_jobs.doctor import checks
from ray_jobs.doctor.checks import Finding
from ray_jobs.doctor.nodes import NodeFacts, look_at_nodes, may_grow
from ray_jobs.doctor.tracking import check_tracking
from ray_jobs.estimate.corpus_sizes import find_backbone
from ray_jobs.estimate.dry_run import ENCODER_WIDTHS, estimate_worker
from ray_jobs.train.checkpoint import FP32_BYTES, CheckpointStore
from ray_jobs.train.run_folder import shown_to_all
from ray_jobs.train.validation import SCORE_KEY

_QUESTION_BYTES = 80  # ten numbers of a question: five of its sizes, three of where it is read, two of its weight
_ROW_BYTES = 8
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
    grows, to_train_on = may_grow(), checks.find_training_nodes(spec, nodes)
    findings += [
        checks.check_versions(nodes),
        checks.check_gpus(spec, nodes, grows),
        *(checks.check_network(spec, to_train_on) if to_train_on else []),
        checks.check_resources(spec, nodes, grows),
        checks.check_storage(spec, nodes),
        checks.check_backbone(spec, to_train_on, find_fault_here(spec)),
        *_check_sizes(spec, nodes, to_train_on),
        checks.check_encoder(nodes),
        check_tracking(spec),
        checks.check_confinement(nodes),
        checks.check_token(nodes, os.environ),
    ]
    return findings


def find_fault_here(spec: RunSpec) -> str:
    """Why the driver of a training could not load the backbone's tokenizer, or make the backbone; "" where it could."""
    try:
        backbone = find_backbone(spec)  # converts a GGUF file
        if backbone in PACKAGED:
            find_packaged(backbone)
        elif backbone != "tiny":
            load_tokenizer(backbone)
    except InputError as error:
        return str(error)
    return ""


def _check_sizes(spec: RunSpec, nodes: list[NodeFacts], to_train_on: list[NodeFacts]) -> list[Finding]:
    """Disk, object store and memory, as far as backbone, corpus and nodes are known."""
    findings = []
    try:
        need = estimate_worker(spec)
    except InputError as error:
        findings.append(Finding("memory", "warning", f"cannot be told: {error}", "mend that, or `train` meets it"))
    else:
        findings += checks.check_memory(spec, to_train_on, need) if to_train_on else []
        findings.append(checks.check_disk(nodes, need.n_trained, count_checkpoints(spec.run_dir)))
    if storage.is_empty(storage.open_folder(spec.corpus_dir)):
        return [*findings, Finding("corpus", "warning", f"there is none at {spec.corpus_dir}", "run `prepare` first")]
    try:
        shared_bytes = count_shared_bytes(Corpus.open(spec.corpus_dir), ENCODER_WIDTHS.get(spec.embed.encoder))
    except InputError as error:
        return [*findings, Finding("corpus", "fails", str(error), "run `prepare` again")]
    return findings + (checks.check_object_store(to_train_on, shared_bytes) if to_train_on else [])


def count_checkpoints(run_dir: Location) -> int:
    """Of the job of the run that has most. In a bucket they take no disk, but for the one that is on its way there."""
    if not isinstance(run_dir, Path):
        return checks.CHECKPOINTS
    jobs = storage.list_folders(run_dir / "checkpoints")
    return max((len(CheckpointStore(job, SCORE_KEY).checkpoints()) for job in jobs), default=0)


def count_shared_bytes(corpus: Corpus, encoder_dim: int | None) -> int:
    """What all ranks of a training read in the object store: the matrix of media vectors, and the plan.

    Args:
        corpus: its shards are held against their hashes.
        encoder_dim: width of a vector; None: ImageBind's.

    Raises:
        InputError: a shard is damaged.
    """
    for split in SPLITS:
        corpus.shards(split)
    counts = corpus.manifest["counts"]
    n_media = sum(counts[split]["distinct_media"] for split in ("train", "val"))
    matrix = n_media * (encoder_dim or max(ENCODER_WIDTHS.values())) * FP32_BYTES
    return matrix + counts["train"]["questions"] * _QUESTION_BYTES + counts["train"]["rows"] * _ROW_BYTES
