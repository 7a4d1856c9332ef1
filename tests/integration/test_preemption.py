"""Nodes that a cluster loses in mid-training, told or untold, then all of it: nothing in what comes out changes."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path

import pytest
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import DrainNodeReason
from ray.util.state import list_actors
from small_cluster import NODE_RESOURCE, TrainingProcess, add_node, kill_nodes, start_cluster
from small_training import assert_equal_runs, build_base, build_spec, find_step

from ray_jobs import prepare
from ray_jobs.config import RunSpec
from ray_jobs.train import job as train
from ray_jobs.train.job import TrainSummary

pytestmark = [pytest.mark.ray, pytest.mark.slow]

EPOCHS = 10
LEFT_S = 60.0  # from the news to the time at which the node may be taken
TOLD = "a node is about to be taken: checkpoint of step"
SETTINGS = (
    "train.workers=2",
    "train.checkpoint_every_steps=5",  # 13 steps are an epoch: most checkpoints lie within one
    "train.validation_questions=0",
    "model.lora_dropout=0.1",
)
ON_NODES = (f"train.node_resource={NODE_RESOURCE}", "train.max_failures=1")  # a node that is taken is no failure
SOON_MISSED = {"health_check_period_ms": 500}  # a node that is gone has not answered five times: Ray asks each 3 s
WATCHES = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1", "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.2"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [*build_base(tmp_path_factory.mktemp("nodes"), EPOCHS), *SETTINGS]


@pytest.fixture(scope="module")
def undisturbed(base: list[str], ray_session: None) -> tuple[RunSpec, TrainSummary]:
    spec = build_spec(base, "undisturbed")
    prepare.run(spec)
    return spec, train.launch(spec)


def test_nodes_that_go_change_nothing(
    base: list[str], undisturbed: tuple[RunSpec, TrainSummary], tmp_path: Path
) -> None:
    """One of two nodes is killed, then one is taken, then the head and all the rest are killed; the job comes again."""
    base = [*base, *ON_NODES, "name=nodes"]
    spec = build_spec(base, "nodes")
    shutil.copytree(undisturbed[0].corpus_dir, spec.corpus_dir)
    with (
        start_cluster(2, _system_config=SOON_MISSED) as cluster,
        TrainingProcess(cluster, base, tmp_path / "first.log", **WATCHES) as job,
    ):
        job.wait_until(lambda: find_step(spec) > 0)
        assert find_worker_nodes(cluster) == {node.node_id for node in cluster.worker_nodes}, "a worker on each"
        killed, taken = cluster.worker_nodes
        kill_nodes(cluster, killed)
        killed_at = find_step(spec)
        add_node(cluster)
        job.wait_until(lambda: find_step(spec) > killed_at)
        drain(cluster, taken.node_id)
        job.wait_until(lambda: TOLD in job.said)
        (told,) = map(int, re.findall(rf"{TOLD} (\d+)", job.said))
        job.wait_until(lambda: find_step(spec) >= told)
        kill_nodes(cluster, taken)
        add_node(cluster)
        job.wait_until(lambda: find_step(spec) > told)
        kill_nodes(cluster, *cluster.list_all_nodes())
        job.kill()  # it ran on the head
    said = job.said
    assert re.search(r"worker \d died with its node \S+; training goes on .* \(failure 1 of 1 allowed\)", said), said
    assert "a node was taken; training goes on from the last checkpoint\n" in said
    resumed_at = [int(step) for step in re.findall(r"resuming at step (\d+) of", said)]
    assert killed_at <= resumed_at[0] < told <= resumed_at[1]
    assert "Traceback" not in said, said
    ended_at = find_step(spec)
    with start_cluster(2) as cluster, TrainingProcess(cluster, base, tmp_path / "second.log") as job:
        assert job.wait() == 0, job.said
    assert f"resuming at step {ended_at} of" in job.said
    assert_equal_runs(undisturbed, spec, TrainSummary.load(spec.run_dir))


def find_worker_nodes(cluster: Cluster) -> set[str | None]:
    """Ids of the nodes on which workers are."""
    actors = list_actors(address=cluster.address, filters=[("state", "=", "ALIVE")])
    return {actor.node_id for actor in actors if "TrainWorker" in actor.class_name}


def drain(cluster: Cluster, node_id: str) -> None:
    """Announce that a node will be taken, as a cloud's autoscaler does."""
    client = GcsClient(address=cluster.address)
    reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    deadline_ms = int((time.time() + LEFT_S) * 1000)
    is_accepted, why = client.drain_node(node_id, reason, "a test takes it", deadline_ms)
    assert is_accepted, why
