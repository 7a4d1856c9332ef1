"""A node that the cluster takes in mid-training, as spot instances go: a checkpoint first, then on elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import DrainNodeReason
from ray.util.state import list_actors
from small_service import free_port
from small_training import build_base, build_spec, history

from ray_jobs import prepare
from ray_jobs.train.checkpoint import CheckpointStore, load_cursor
from ray_jobs.train.job import TrainSummary
from ray_jobs.train.validation import SCORE_KEY

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("warm_python")]

EPOCHS = 45
LEFT_S = 60.0  # from the news to the time at which the node may be taken
TOLD = "a node is about to be taken: checkpoint of step"
SETTINGS = (
    "train.workers=2",
    "train.node_resource=spot",
    "train.max_failures=0",  # it is no fault
    "train.validation_questions=0",
)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head and two nodes that training may use, each large enough for all of it."""
    # a Ray of other tests may stand beside it, with the default ports
    ports = {"dashboard_port": free_port(), "dashboard_agent_listen_port": None}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "include_dashboard": True, **ports})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=4, resources={"spot": 2})
        cluster.wait_for_nodes()
        yield cluster
    finally:
        cluster.shutdown()


def test_a_node_that_is_taken_costs_nothing_that_was_done(cluster: Cluster, tmp_path: Path) -> None:
    base = [*build_base(tmp_path, EPOCHS), *SETTINGS]
    spec = build_spec(base, "spot")
    env = os.environ | {
        "RAY_ADDRESS": cluster.address,
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1",
        "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.2",
    }
    prepare.run(spec)
    log = tmp_path / "job.log"
    with log.open("w") as output:
        command = [sys.executable, "-m", "ray_jobs", "train", *base, "name=spot"]
        job = subprocess.Popen(command, env=env, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 300
        while not has_checkpoint(spec.run_dir):
            assert job.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        taken = find_workers(cluster.address)
        drain(cluster.address, taken)
        while TOLD not in log.read_text():
            assert job.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        (node,) = [node for node in cluster.worker_nodes if node.node_id == taken]
        cluster.remove_node(node, allow_graceful=False)
        assert job.wait(300) == 0, log.read_text()
    finally:
        job.kill()
        job.wait()
    said = log.read_text()
    (told,) = re.findall(rf"{TOLD} (\d+)", said)
    summary = TrainSummary.load(spec.run_dir)
    losses = history(spec, summary.mlflow_run_id, "train/loss")
    assert list(losses) == list(range(load_cursor(Path(summary.last_checkpoint)).step)), "each step once"
    assert 0 < int(told) < len(losses)


def has_checkpoint(run_dir: Path) -> bool:
    stores = [CheckpointStore(folder, SCORE_KEY) for folder in (run_dir / "checkpoints").glob("*")]
    return any(store.find_last() is not None for store in stores)


def find_workers(address: str) -> str:
    """Id of the node on which all workers are."""
    actors = list_actors(address=address, filters=[("state", "=", "ALIVE")])
    (node_id,) = {actor.node_id for actor in actors if "TrainWorker" in actor.class_name}
    assert node_id is not None
    return node_id


def drain(address: str, node_id: str) -> None:
    """Announce that a node will be taken, as a cloud's autoscaler does."""
    client = GcsClient(address=address)
    reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    deadline_ms = int((time.time() + LEFT_S) * 1000)
    is_accepted, why = client.drain_node(node_id, reason, "a test takes it", deadline_ms)
    assert is_accepted, why
