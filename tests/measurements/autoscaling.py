"""Nodes and replicas that come with the work and go when it is done: no test.

    python tests/measurements/autoscaling.py [--v2]

Ray's autoscaler starts nodes of the kinds that cluster.yaml has, each a raylet on this machine, whose GPUs are numbers.
A training on nodes with `train_gpu` is run by the command line; then the service is deployed with `min_replicas: 0` and
replicas that take a GPU of `serve_gpu`: nobody asks but a health check, one asks, many ask, nobody asks. Whatever lives
is written down twice a second. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

SETTINGS_OF_TESTS = {"OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "token", "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1"}
os.environ.update(SETTINGS_OF_TESTS)  # before Ray reads them

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "integration")]

from autoscaling_cluster import BIN, AutoscalingCluster, autoscaling  # noqa: E402
from small_service import SELECT, free_port, make_bundle, make_encoder, picture  # noqa: E402
from small_training import build_base  # noqa: E402
from test_serve_outages import load, wait_until  # noqa: E402

ALWAYS = {"cpu_data": 1}
IDLE_S = 10.0
MAX_REPLICAS = 3
CLIENTS_ASK_S = 30.0  # from when all replicas are there
SCALING = {
    "min_replicas": 0,
    "max_replicas": MAX_REPLICAS,
    "target_ongoing_requests": 1,
    "upscale_delay_s": 2,
    "downscale_delay_s": 10,
    "look_back_period_s": 10,
}


class Watch:
    """What nodes lived when; a line for each change."""

    def __init__(self, cluster: AutoscalingCluster) -> None:
        self.changes: list[tuple[float, dict[str, int]]] = []
        self._cluster, self._start, self._is_over = cluster, time.monotonic(), threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def most(self, since: int) -> dict[str, int]:
        """Kind -> the most that lived at once since that change."""
        seen = [nodes for _, nodes in self.changes[since:]]
        return {kind: max(nodes.get(kind, 0) for nodes in seen) for kind in sorted(set().union(*seen))}

    def end(self) -> None:
        self._is_over.set()
        self._thread.join(60)

    def _look(self) -> None:
        while not self._is_over.wait(0.5):
            nodes = self._cluster.nodes()
            if not self.changes or self.changes[-1][1] != nodes:
                self.changes.append((time.monotonic() - self._start, nodes))
                print(f"  {self.changes[-1][0]:7.1f} s  {nodes}", flush=True)


def train(cluster: AutoscalingCluster, folder: Path, watch: Watch) -> dict[str, Any]:
    settings = [*build_base(folder, epochs=4), "name=scaled", "train.workers=2", "train.node_resource=train_gpu"]
    since = len(watch.changes) - 1
    start = time.monotonic()
    for verb in ("prepare", "train"):
        command = [sys.executable, "-m", "ray_jobs", verb, *settings]
        env = cluster.env | {"RAY_ADDRESS": cluster.address}
        done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    seconds = time.monotonic() - start
    most = watch.most(since)  # before other work begins
    gone_s = cluster.wait_for(ALWAYS, 120, lambda _: None)
    return {"prepare_and_train_s": round(seconds, 1), "most_nodes": most, "nodes_gone_after_s": round(gone_s, 1)}


@contextmanager
def deployed(cluster: AutoscalingCluster, folder: Path) -> Iterator[str]:
    """The service by `serve deploy`; its address, once it answers health checks."""
    encoder_dir = make_encoder(folder / "encoder")
    bundle = make_bundle(folder / "bundle", folder / "served_backbone", encoder_dir)
    port = free_port()
    args = {
        "bundle": str(bundle),
        "artifacts": str(folder / "artifacts"),
        "num_gpus": 1,
        "node_resource": "serve_gpu",
        "min_replicas": 0,
        "max_replicas": MAX_REPLICAS,
        "max_batch_size": 1,  # so that a few clients are many
        "request_timeout_s": 240,
    }
    config = {
        "proxy_location": "HeadOnly",  # all nodes have one IP
        "http_options": {"host": "127.0.0.1", "port": port},
        "applications": [
            {
                "name": "toolmm",
                "route_prefix": "/",
                "import_path": "serve.app:build_app",
                "args": args,
                "deployments": [{"name": n, "autoscaling_config": SCALING} for n in ("Predictor", "MediaEncoder")],
            }
        ],
    }
    (folder / "serve.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    command = [str(BIN / "serve"), "deploy", "--address", cluster.dashboard, str(folder / "serve.yaml")]
    done = subprocess.run(command, env=cluster.env, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    url = f"http://127.0.0.1:{port}"
    wait_until(lambda: is_healthy(url), 240)
    yield url


def is_healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz", timeout=30).status_code == 200
    except httpx.HTTPError:
        return False


def serve(cluster: AutoscalingCluster, folder: Path, watch: Watch) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with deployed(cluster, folder) as url:
        since = len(watch.changes) - 1
        for _ in range(15):
            assert is_healthy(url)
            assert httpx.get(f"{url}/metrics", timeout=30).status_code == 200
            time.sleep(1)
        found["nodes_while_only_health_is_asked"] = watch.most(since)

        def ask(**body: Any) -> float:
            start = time.monotonic()
            answer = httpx.post(url + SELECT, timeout=300, **body)
            assert answer.status_code == 200, answer.text
            return round(time.monotonic() - start, 1)

        words = {"json": {"instruction": "improve this"}}
        found["first_answer_s"] = ask(**words)
        found["second_answer_s"] = ask(**words)
        since = len(watch.changes) - 1
        with load(lambda client: client.post(url + SELECT, **words)) as asked:
            found["all_replicas_after_s"] = round(wait_until(lambda: count_serving(cluster) == MAX_REPLICAS, 240), 1)
            time.sleep(CLIENTS_ASK_S)
        found |= {"answers_under_load": len(asked.answers), "longest_s": round(asked.longest_s, 1)}
        found |= {"failures": asked.failures, "most_nodes": watch.most(since)}

        def is_over() -> bool:
            time.sleep(1)
            return is_healthy(url) and cluster.nodes() == ALWAYS

        found["nodes_gone_after_s"] = round(wait_until(is_over, 300), 1)
        file = {"files": {"file": ("a.png", picture())}, "data": {"instruction": "improve this"}}
        found["first_answer_with_picture_s"] = ask(**file)
        found["nodes_gone_again_after_s"] = round(wait_until(is_over, 300), 1)
    return found


def count_serving(cluster: AutoscalingCluster) -> int:
    """Nodes that serve; a predictor's replica takes the whole GPU of one."""
    return cluster.nodes().get("gpu_serve", 0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--v2", action="store_true", help="the autoscaler that KubeRay takes")
    is_v2 = parser.parse_args().v2
    with tempfile.TemporaryDirectory() as name, autoscaling(IDLE_S, is_v2=is_v2) as cluster:
        watch = Watch(cluster)
        try:
            print("training", flush=True)
            training = train(cluster, Path(name), watch)
            print(training, "\nserving", flush=True)
            serving = serve(cluster, Path(name), watch)
        finally:
            watch.end()
    print(json.dumps({"autoscaler": 2 if is_v2 else 1, "training": training, "serving": serving}))


if __name__ == "__main__":
    main()
