"""What becomes of a training over two nodes when Ray's head is killed, with and without its state in Redis: no test.

    PYTHONPATH=.:tests/integration python tests/measurements/head_killed.py gcs head driver none

A head and two nodes on this machine, with an address of its own for one of them, on which the driver may be:

- `gcs`: state in Redis; the GCS server alone is killed and started again. The driver is on the head.
- `head`: state in Redis; all processes of the head are killed, and it is started again. The driver is on another node.
- `driver`: state in Redis; the head is killed with the driver on it and started again, then the job is submitted again.
- `none`: no Redis; the head is killed. The driver is on another node. Then a new cluster, and the job again.

What comes out is held against a run that nothing disturbed. `redis-server` has to be installed for all but `none`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ray.cluster_utils import Cluster
from small_cluster import NODE_RESOURCE, TrainingProcess, kill_nodes, start_cluster
from small_service import free_port
from small_training import assert_equal_runs, build_base, build_spec, find_step

from ray_jobs.config import RunSpec
from ray_jobs.train.job import TrainSummary

SETTINGS = (
    "train.workers=2",
    "train.checkpoint_every_steps=5",
    "train.validation_questions=0",
    "model.lora_dropout=0.1",
    "train.max_failures=1",
)
DRIVER_IP = "127.0.0.2"  # of the node on which the driver is, where it is not the head
OUTAGE_S = 10.0
LIMIT_S = 900.0


class Watch:
    """Prints what happens, with the training's last checkpoint and the longest time without a new one."""

    def __init__(self, spec: RunSpec) -> None:
        self._spec, self._start = spec, time.monotonic()
        self._step, self._changed, self.longest_gap_s = 0, time.monotonic(), 0.0

    def say(self, what: str) -> None:
        print(f"{time.monotonic() - self._start:7.1f} s  step {find_step(self._spec):4}  {what}", flush=True)

    def look(self) -> int:
        step, now = find_step(self._spec), time.monotonic()
        self.longest_gap_s = max(self.longest_gap_s, now - self._changed)
        if step != self._step:
            self._step, self._changed = step, now
        return step

    def wait(self, job: TrainingProcess, step: int = 1 << 30, limit_s: float = LIMIT_S) -> int | None:
        """Until it has taken so many steps, has ended or the time is up; returns its exit code, if there is one."""
        end = time.monotonic() + limit_s
        while time.monotonic() < end and (code := job.poll()) is None:
            if self.look() >= step:
                return None
            time.sleep(0.05)
        return code


@contextmanager
def run_redis() -> Iterator[str]:
    """Its address."""
    port = free_port()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    os.environ["RAY_REDIS_ADDRESS"] = f"127.0.0.1:{port}"
    time.sleep(1)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        del os.environ["RAY_REDIS_ADDRESS"]
        server.kill()
        server.wait()


def kill_and_restart(scenario: str, spec: RunSpec, base: list[str], folder: Path) -> int | None:
    """One scenario on a cluster; returns the exit code of the job that ran to the end there, None if none did."""
    head = {"gcs_server_port": free_port(), "dashboard_port": free_port()}
    watch = Watch(spec)
    on_head = scenario in ("gcs", "driver")
    with start_cluster(1, **head) as cluster:
        cluster.add_node(num_cpus=2, resources={NODE_RESOURCE: 1}, node_ip_address=DRIVER_IP)
        watch.say("cluster is up")
        with TrainingProcess(cluster, base, folder / "first.log", node_ip=None if on_head else DRIVER_IP) as job:
            watch.wait(job, step=10)
            watch.say("kill")
            assert cluster.head_node is not None
            if scenario == "gcs":
                cluster.head_node.kill_gcs_server()
            else:
                kill_nodes(cluster, cluster.head_node)
            if scenario == "driver":
                job.kill()
            code = watch.wait(job, limit_s=90.0 if scenario == "none" else OUTAGE_S)
            watch.say(f"{OUTAGE_S:.0f} s later, or the job has ended: exit code {code}")
            if scenario == "gcs":
                cluster.head_node.start_gcs_server()
            elif scenario != "none":
                restart_head(cluster, head)
            watch.say("head is up again" if scenario != "none" else "no head any more")
            if scenario in ("gcs", "head"):
                code = watch.wait(job)
        show(job, watch, code)
        if scenario != "driver":
            return code
        with TrainingProcess(cluster, base, folder / "second.log") as job:
            code = watch.wait(job)
        show(job, watch, code)
        return code


def restart_head(cluster: Cluster, head: dict[str, int]) -> None:
    cluster.add_node(num_cpus=4, include_dashboard=True, dashboard_agent_listen_port=None, **head)


def show(job: TrainingProcess, watch: Watch, code: int | None) -> None:
    watch.say(f"exit code {code}; longest time without a checkpoint {watch.longest_gap_s:.1f} s; it printed:")
    print("\n".join(f"    | {line[:240]}" for line in job.said.splitlines()[-25:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenarios", nargs="+", choices=["gcs", "head", "driver", "none"])
    parser.add_argument("--epochs", type=int, default=100)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="toolmm-head-"))
    base = [*build_base(folder, options.epochs), *SETTINGS]
    whole = build_spec(base, "undisturbed")
    for verb in ("prepare", "train"):  # on a Ray of their own
        subprocess.run([sys.executable, "-m", "ray_jobs", verb, *base, "name=undisturbed"], check=True)
    for scenario in options.scenarios:
        print(f"\n== {scenario}")
        spec = build_spec(base, scenario)
        shutil.copytree(whole.corpus_dir, spec.corpus_dir)
        (folder / scenario).mkdir()
        job_base = [*base, f"train.node_resource={NODE_RESOURCE}", f"name={scenario}"]
        if scenario == "none":
            code = kill_and_restart(scenario, spec, job_base, folder / scenario)
        else:
            with run_redis():
                code = kill_and_restart(scenario, spec, job_base, folder / scenario)
        if code != 0:
            watch = Watch(spec)
            with start_cluster(2) as cluster, TrainingProcess(cluster, job_base, folder / "again.log") as job:
                code = watch.wait(job)
            show(job, watch, code)
        assert_equal_runs((whole, TrainSummary.load(whole.run_dir)), spec, TrainSummary.load(spec.run_dir))
        print(f"== {scenario}: equal to the undisturbed run, bit for bit")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
