"""Ray's own autoscaler over the kinds of nodes of cluster.yaml, each node a raylet on this machine.

Ray's `AutoscalingCluster` does the same and cannot be used: it reads a file that the wheel lacks, always takes Ray's
default ports, and begins and ends with `ray stop --force`, which kills every Ray of the machine.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil
import yaml
from ray._private.services import get_node_ip_address
from ray._raylet import GcsClient
from ray.core.generated.gcs_pb2 import GcsNodeInfo
from submit_head import find_free_ports

from ray_jobs.cluster import JOB_CONFIG_ENV

REPO = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
HEAD_TYPE = "ray.head.default"  # what the provider calls the head, whatever the file does
HEAD_ID = "f" * 51 + "00000"  # nodes' ids are given by the provider, which counts from here
OBJECT_STORE_BYTES = 150 * 2**20  # of each node
START_LIMIT_S = 240.0


@dataclass(frozen=True)
class AutoscalingCluster:
    """A head without CPUs and the autoscaler beside it.

    Attributes:
        address: of the cluster, for `ray.init` and RAY_ADDRESS.
        dashboard: its address.
        env: environment of the processes that are to use the cluster.
        folder: where Ray keeps what it writes.
    """

    address: str
    dashboard: str
    env: dict[str, str]
    folder: Path

    @cached_property
    def _gcs(self) -> GcsClient:
        return GcsClient(address=self.address)

    def nodes(self) -> dict[str, int]:
        """Kind -> how many live; without the head."""
        found = self._gcs.get_all_node_info(timeout=30).values()
        kinds = Counter(node.node_type_name for node in found if node.state == GcsNodeInfo.ALIVE)
        return {kind: n for kind, n in kinds.items() if kind not in ("", HEAD_TYPE)}

    def wait_for(self, nodes: dict[str, int], timeout_s: float, see: Callable[[dict[str, int]], None]) -> float:
        """Seconds until these nodes live and no others; `see` gets what lives, again and again until then."""
        start = time.monotonic()
        while (living := self.nodes()) != nodes:
            see(living)
            assert time.monotonic() - start < timeout_s, f"{living} after {timeout_s} s instead of {nodes}"
            time.sleep(0.2)
        see(living)
        return time.monotonic() - start


def read_config(gcs_address: str, idle_s: float) -> dict[str, Any]:
    """cluster.yaml as its head gets it, but for provider and set-up, which reach a cloud, and how long a node idles."""
    from ray.autoscaler._private.util import prepare_config

    config = prepare_config(yaml.safe_load((REPO / "cluster.yaml").read_text(encoding="utf-8")))
    kinds = config["available_node_types"]
    kinds[HEAD_TYPE] = kinds.pop(config["head_node_type"])
    for kind in kinds.values():
        kind["resources"]["object_store_memory"] = OBJECT_STORE_BYTES
    provider = {
        "type": "external",
        "module": PROVIDER,
        "gcs_address": gcs_address,
        "head_node_id": HEAD_ID,
        "launch_multiple": True,
        "use_node_id_as_ip": True,  # all nodes have one IP
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    }
    changed = {"provider": provider, "head_node_type": HEAD_TYPE, "idle_timeout_minutes": idle_s / 60}
    no_commands = {name: [] for name in config if name.endswith("_commands")}
    return config | changed | no_commands | {"file_mounts": {}}


@contextmanager
def autoscaling(idle_s: float, *, is_v2: bool = False) -> Iterator[AutoscalingCluster]:
    """Start head and autoscaler on free ports; at the end they and all nodes are gone.

    Args:
        idle_s: how long a node without work is kept.
        is_v2: the autoscaler that KubeRay takes; `ray up` takes the first one.
    """
    folder = Path(tempfile.mkdtemp(prefix="ra", dir="/tmp"))  # short: unix sockets lie in it
    ports = find_free_ports(5)
    address = f"{get_node_ip_address()}:{ports[0]}"
    usual = {name: value for name, value in os.environ.items() if name != JOB_CONFIG_ENV}  # workers die with raylets
    env = usual | {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(REPO), os.environ.get("PYTHONPATH")))),
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    of_head = {
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_enable_worker_prestart": "0",  # a node of 96 CPUs that are not there would start 96 workers
        "RAY_prestart_worker_first_driver": "0",
        "RAY_enable_autoscaler_v2": str(int(is_v2)),
    }
    if is_v2:
        of_head |= {"RAY_CLOUD_INSTANCE_ID": HEAD_ID, "RAY_NODE_TYPE_NAME": HEAD_TYPE}
    (folder / "cluster.yaml").write_text(yaml.safe_dump(read_config(address, idle_s)), encoding="utf-8")
    subprocess.run([BIN / "ray", "get-auth-token", "--generate"], env=env, check=True, capture_output=True, timeout=120)
    names = ("port", "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port", "metrics-export-port")
    command = [str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=0", "--include-dashboard=true"]
    command += [f"--{name}={port}" for name, port in zip(names, ports, strict=True)]
    command += ["--min-worker-port=0", "--max-worker-port=0", f"--object-store-memory={OBJECT_STORE_BYTES}"]
    command += [f"--temp-dir={folder}", f"--autoscaling-config={folder / 'cluster.yaml'}"]
    with (folder / "head.log").open("w", encoding="utf-8") as log:
        head = subprocess.Popen(command, env=env | of_head, stdout=log, stderr=log, start_new_session=True)
    try:
        cluster = AutoscalingCluster(address, f"http://127.0.0.1:{ports[1]}", env, folder)
        _wait_until_up(cluster, head)
        yield cluster
    finally:
        _end(head)
        shutil.rmtree(folder, ignore_errors=True)


def _wait_until_up(cluster: AutoscalingCluster, head: subprocess.Popen[bytes]) -> None:
    """Until the nodes live that are always there."""
    deadline = time.monotonic() + START_LIMIT_S
    while True:
        said = (cluster.folder / "head.log").read_text(encoding="utf-8")
        assert head.poll() is None, said
        assert time.monotonic() < deadline, said
        if "Ray runtime started" in said and cluster.nodes():
            return
        time.sleep(0.3)


def _end(head: subprocess.Popen[bytes]) -> None:
    """The head's processes end with it; those of the nodes are children of the autoscaler, and would outlive it."""
    if head.poll() is not None:
        return
    mine = psutil.Process(head.pid).children(recursive=True)
    head.terminate()
    try:
        head.wait(20)
    except subprocess.TimeoutExpired:
        head.kill()
        head.wait()
    _, left = psutil.wait_procs(mine, timeout=3)
    for each in left:
        if each.is_running():
            each.kill()
    psutil.wait_procs(left, timeout=10)
