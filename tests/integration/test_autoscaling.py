"""Ray's autoscaler, with the kinds of nodes of cluster.yaml, starts those that a training's placement group is for."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from subprocess import PIPE, Popen
from typing import Any

import pytest
from autoscaling_cluster import AutoscalingCluster, autoscaling

from ray_jobs.config import load_run_spec
from ray_jobs.train.job import scale

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ALWAYS = {"cpu_data": 1}
HOLD = """
import json, sys
import ray
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from ray_jobs.cluster import connect
from ray_jobs.config import RayOptions

class Pack:
    def __call__(self, rows):
        return rows

@ray.remote(num_cpus=0)
def read():
    rows = ray.data.range(4).map_batches(Pack, compute=ray.data.ActorPoolStrategy(size=1)).take_all()
    assert len(rows) == 4

bundles, strategy = json.loads(sys.argv[1])
connect(RayOptions())
group = placement_group(bundles, strategy)
ray.get(group.ready())
ray.get(read.options(scheduling_strategy=PlacementGroupSchedulingStrategy(group)).remote())
print("ready", flush=True)
sys.stdin.read()
"""


@contextmanager
def placed(cluster: AutoscalingCluster, bundles: list[dict[str, Any]], strategy: str) -> Iterator[Popen[str]]:
    """A job that asks for a placement group, reads there by Ray Data as ranks do, and holds it until told."""
    command = [sys.executable, "-c", HOLD, json.dumps([bundles, strategy])]
    job = Popen(command, env=cluster.env | {"RAY_ADDRESS": cluster.address}, stdin=PIPE, stdout=PIPE, text=True)
    try:
        yield job
        job.communicate(timeout=60)
    finally:
        job.kill()
        job.wait()


def test_a_pending_training_starts_its_kind_of_node_alone() -> None:
    """Sixteen workers on GPUs: two nodes of eight, none of the others; after the training they go."""
    wanted = scale(load_run_spec("vicuna_13b", ["train.workers=16", "train.node_resource=train_gpu"]).train)
    assert isinstance(wanted.num_workers, int)
    assert wanted.num_gpus_per_worker == 1
    bundles = [wanted._resources_per_worker_not_none] * wanted.num_workers  # as Ray Train's worker group does
    seen: list[dict[str, int]] = []
    with autoscaling(idle_s=3) as cluster:
        assert cluster.nodes() == ALWAYS
        with placed(cluster, bundles, str(wanted.placement_strategy)) as driver:
            assert driver.stdout is not None
            assert "ready\n" in iter(driver.stdout.readline, "")
            # on a busy machine the autoscaler may see nodes and what is placed on them apart, and start more at first
            cluster.wait_for(ALWAYS | {"gpu_train": 2}, 120, seen.append)
        cluster.wait_for(ALWAYS, 120, seen.append)
    assert set().union(*seen) == {"cpu_data", "gpu_train"}
