"""A Ray cluster of several nodes on this machine that can be killed, and a training on it as a process of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from ray._private.node import Node
from ray.cluster_utils import Cluster
from ray.util.state import list_workers
from small_service import free_port

NODE_RESOURCE = "spot"  # what a node has one of: room for one worker


@contextmanager
def start_cluster(n_nodes: int, **head: Any) -> Iterator[Cluster]:
    """A head without room for workers and so many nodes, with room for one each; `head` goes to Ray's `Node`."""
    # a Ray of other tests may stand beside it, with the default ports
    ports = {"dashboard_port": free_port(), "dashboard_agent_listen_port": None}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "include_dashboard": True, **ports, **head})
    try:
        for _ in range(n_nodes):
            add_node(cluster)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        cluster.shutdown()


def add_node(cluster: Cluster) -> Node:
    return cluster.add_node(num_cpus=2, resources={NODE_RESOURCE: 1})


def kill_nodes(cluster: Cluster, *nodes: Node) -> None:
    """SIGKILL to their raylets, workers and what else these have started, as when machines lose their power, then to
    the rest. Workers need not be children of their raylet: see tests/python_start."""
    ids = {node.node_id for node in nodes}
    known: list[Any] = list_workers(cluster.address, limit=1000)  # drivers and the dead among them
    pids = [each.pid for each in known if each.is_alive and each.worker_type == "WORKER" and each.node_id in ids]
    for pid in (*(node.all_processes["raylet"][0].process.pid for node in nodes), *pids):
        with contextlib.suppress(psutil.NoSuchProcess):
            parent = psutil.Process(pid)
            for process in (parent, *parent.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
    for node in nodes:
        cluster.remove_node(node, allow_graceful=False)


# `python -m ray_jobs` on the node of an address: of several on one machine Ray's driver joins the head otherwise
ON_NODE = """
import sys
import ray
init, node_ip = ray.init, sys.argv.pop(1)
ray.init = lambda **arguments: init(_node_ip_address=node_ip, **arguments)
import runpy
runpy.run_module("ray_jobs", run_name="__main__")
"""


class TrainingProcess:
    """`python -m ray_jobs train` on a cluster. Use it as a context manager, at whose end it is gone.

    Args:
        cluster: where it runs.
        overrides: of the run config.
        log: a file for all that it prints.
        node_ip: address of the node that its driver joins; None for the head.
        **variables: of its environment.
    """

    def __init__(
        self, cluster: Cluster, overrides: list[str], log: Path, node_ip: str | None = None, **variables: str
    ) -> None:
        self._log = log
        env = os.environ | {"RAY_ADDRESS": cluster.address} | variables
        program = ["-m", "ray_jobs"] if node_ip is None else ["-c", ON_NODE, node_ip]
        command = [sys.executable, *program, "train", *overrides]
        with log.open("w") as output:
            self._process = subprocess.Popen(command, env=env, stdout=output, stderr=subprocess.STDOUT)

    def __enter__(self) -> TrainingProcess:
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()

    @property
    def said(self) -> str:
        return self._log.read_text()

    def wait_until(self, holds: Callable[[], bool], timeout_s: float = 300) -> None:
        deadline = time.monotonic() + timeout_s
        while not holds():
            assert self._process.poll() is None, self.said
            assert time.monotonic() < deadline, self.said
            time.sleep(0.05)

    def poll(self) -> int | None:
        """Its exit code, if it has ended."""
        return self._process.poll()

    def wait(self, timeout_s: float = 300) -> int:
        """Its exit code."""
        return self._process.wait(timeout_s)

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
