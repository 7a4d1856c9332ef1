"""The run's folder as all processes of a training share it: one job writes there at a time, and every node sees it."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from filelock import FileLock, Timeout

from data_pipeline import lease, storage
from data_pipeline.errors import InputError
from data_pipeline.lease import HeldError
from data_pipeline.locations import BucketPath, Location
from ray_jobs.cluster import ask_nodes

PATIENCE_S = 60.0  # with nodes that do not answer; they cannot hold a job up, whose workers look again

BESIDE = "change name, seed or a setting to train another one beside it"


@contextmanager
def only_one(run_dir: Location, job: str, beside: str = BESIDE) -> Iterator[None]:
    """Hold a job of the run for this process; the system lets go of it when the process ends, however it does.

    In a bucket it is a lease that stays for a minute behind a process that was killed (`data_pipeline/lease.py`). A
    process that was cut off from the bucket for longer, and finds that another one has taken the job, is interrupted.

    Args:
        run_dir: the run's folder.
        job: its name.
        beside: what to do to run another one at the same time, for the message.

    Raises:
        InputError: another process runs this very job.
    """
    held = _in_bucket(run_dir, job) if isinstance(run_dir, BucketPath) else _on_disk(run_dir, job)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(held)
        except HeldError as error:
            raise InputError(
                f"{error} runs this very job ({job} in {run_dir}) already; wait for it or stop it, or {beside}."
            ) from None
        yield


@contextmanager
def _on_disk(run_dir: Path, job: str) -> Iterator[None]:
    run_dir.mkdir(parents=True, exist_ok=True)
    holder = run_dir / f".{job}.running"
    lock = FileLock(holder, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        who = holder.read_text(encoding="utf-8", errors="replace").strip()[:200]
        raise HeldError(who or "another process") from None
    try:
        holder.write_text(_name_process(), encoding="utf-8")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _in_bucket(run_dir: BucketPath, job: str) -> contextlib.AbstractContextManager[None]:
    def stop() -> None:
        print(f"another process has taken over {job} in {run_dir}, which this one could not reach", file=sys.stderr)
        os.kill(os.getpid(), signal.SIGINT)

    return lease.holding(run_dir / f".{job}.running", _name_process(), stop)


def _name_process() -> str:
    return f"process {os.getpid()} on {platform.node()}"


def name_proof(run_dir: Location) -> Location:
    """A file that is not there yet, for `shown_to_all`."""
    return run_dir / f".shared-{uuid.uuid4().hex}"


@contextmanager
def shown_to_all(proof: Location) -> Iterator[Location]:
    """Keep a file in the run's folder while the block lasts, for `check_shared` on every worker."""
    storage.write_file(proof, "every worker must see this file\n")
    try:
        yield proof
    finally:
        storage.remove_file(proof)


def check_shared(proof: Location) -> None:
    """Refuse to train on a node that does not see what the driver has written: it would write checkpoints to nobody.

    Raises:
        InputError: names the node and the folder.
    """
    if not storage.exists(proof):
        raise _unseen(platform.node(), proof)


def prove_shared(run_dir: Location) -> None:
    """Refuse a job on several nodes of which one does not see the run's folder, before anything is read or started.

    A bucket is seen by all, and one node by itself: then nothing is asked. Nodes that come later are not known yet.

    Raises:
        InputError: names the node and the folder.
    """
    if not isinstance(run_dir, Path):
        return
    here = ray.get_runtime_context().get_node_id()
    others = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] != here and node["Resources"].get("CPU")]
    if not others:
        return
    with shown_to_all(name_proof(run_dir)) as proof:
        seen, _ = ask_nodes(others, _sees, proof, patience_s=PATIENCE_S)
    for node in others:
        if seen.get(node["NodeID"]) is False:
            raise _unseen(node["NodeManagerHostname"], proof)


@ray.remote(num_cpus=0)
def _sees(proof: Location) -> bool:
    return storage.exists(proof)


def _unseen(node: str, proof: Location) -> InputError:
    return InputError(
        f"node {node} does not see {proof.parent}, where the job has just written a file: runs_dir must lie on storage "
        "that all nodes share, such as a network file system or a bucket (s3://, gs://)."
    )
