"""Serving and training side by side while things break, for as long as it is told: no test.

    python tests/measurements/long_run.py --minutes 60

A cluster of a head and two nodes on this machine, on free ports. Clients ask the service all the time, damaged pictures
among the rest; what they are told is held against the model's own answers. Trainings follow one another, tracked by a
server; each must end with the first one's weights, bit for bit, and with each step logged once. Meanwhile one thing
after the other is killed or fills up. The disk that fills is a small file system, which only root can mount: for others
that fault is left out. The last line is JSON. It exits with 1 where anything was lost.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import psutil

SETTINGS_OF_TESTS = {"OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "token", "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1"}
os.environ.update(SETTINGS_OF_TESTS)  # before Ray reads them

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "integration")]

import ray  # noqa: E402
import torch  # noqa: E402
from ray import serve as ray_serve  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402
from ray.util.state import list_actors  # noqa: E402
from small_service import APP, MODEL, SELECT, Service, free_port, make_bundle, make_encoder, picture  # noqa: E402
from small_training import build_base, build_spec, history  # noqa: E402
from tracking_server import TrackingServer  # noqa: E402

from model.llm.bundle import load_bundle  # noqa: E402
from ray_jobs.config import RunSpec  # noqa: E402
from ray_jobs.train.checkpoint import load_cursor, load_parameters  # noqa: E402
from ray_jobs.train.job import TrainSummary  # noqa: E402
from serve.app import build_app  # noqa: E402

PAUSE_S = 0.2  # between a client's questions: the training shares the cores
ATTEMPTS = 20  # of one training: a full disk breaks off each of those made in its time
RETRIES = 2  # as OpenAI's client asks again
NODE = {"num_cpus": 4, "resources": {"spot": 2}, "object_store_memory": 150 * 2**20}
SETTINGS = (
    "train.workers=2",
    "train.node_resource=spot",
    "train.checkpoint_every_steps=10",
    "train.max_failures=3",
    "train.validation_questions=0",
)
DISK = "256m"
NEXT_NODE_S = 10.0  # until another node comes for one that was killed
WORDS = ("improve this", "mark the edges", "cut it into segments", "what is this", "take out the noise", "sharpen it")


@dataclass
class Asked:
    """What the clients met. A question is lost when it is not answered rightly the third time either."""

    answered: int = 0
    refused: int = 0  # damaged pictures
    asked_again: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    longest_s: float = 0.0


@dataclass
class Trained:
    """What became of the trainings."""

    rounds: list[str] = field(default_factory=list)
    submitted: int = 0
    broken_off: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def ask_on(service: Service, expected: dict[Any, dict[str, float]], found: Asked, is_over: threading.Event) -> None:
    rng = random.Random(threading.get_ident())
    whole = picture()
    damaged = whole[:60] + bytes(20) + whole[80:]
    with httpx.Client(timeout=120) as client:
        while not is_over.wait(PAUSE_S):
            words, kind = rng.choice(WORDS), rng.choice(("words", "words", "picture", "damaged"))
            body: dict[str, Any] = {"json": {"instruction": words, "k": 3}}
            if kind != "words":
                data = whole if kind == "picture" else damaged
                body = {"data": {"instruction": words, "k": "3"}, "files": {"file": ("a.png", data, "image/png")}}
            begun = time.monotonic()
            said = ""
            for _ in range(1 + RETRIES):
                said = judge(client, service.url, body, expected.get((words, kind)))
                if not said:
                    break
                found.asked_again[said[:120]] += 1
                time.sleep(1)
            found.longest_s = max(found.longest_s, time.monotonic() - begun)
            if said:
                found.lost.append(f"{kind}: {said}")
            elif kind == "damaged":
                found.refused += 1
            else:
                found.answered += 1


def judge(client: httpx.Client, url: str, body: dict[str, Any], expected: dict[str, float] | None) -> str:
    """What is wrong with the answer, in words; "" where nothing is. `expected` is None where a refusal is right."""
    try:
        answer = client.post(url + SELECT, **body)
    except httpx.HTTPError as error:
        return repr(error)
    if expected is None:
        return "" if answer.status_code in (415, 422) else f"HTTP {answer.status_code} to a damaged picture"
    if answer.status_code != 200:
        return f"HTTP {answer.status_code} {answer.text}"
    tools = {tool["tool_id"]: tool["probability"] for tool in answer.json()["tools"]}
    best = dict(list(expected.items())[:3])
    is_right = tools.keys() == best.keys() and all(abs(tools[tool] - p) < 1e-3 for tool, p in best.items())
    return "" if is_right else f"{tools} instead of {best}"


class Trainings:
    """One training after the other, each in a process of its own, submitted again where it breaks off."""

    def __init__(self, base: list[str], address: str) -> None:
        self.found = Trained()
        self._base, self._address = base, address
        self._first: tuple[RunSpec, TrainSummary] | None = None

    def run(self, is_over: threading.Event) -> None:
        while not is_over.is_set():
            try:
                self.run_one()
            except Exception as error:  # noqa: BLE001  (whatever it is, it is told at the end)
                self.found.faults.append(repr(error))
                is_over.wait(10)

    def run_one(self) -> None:
        spec = build_spec(self._base, f"round-{len(self.found.rounds)}")
        for verb in ("prepare", "train"):
            for _ in range(ATTEMPTS):
                if (said := self._submit(verb, spec.name)) is None:
                    break
                self.found.broken_off.append(said)
            else:
                raise RuntimeError(f"{spec.name} does not come to its end")
        self.found.rounds.append(spec.name)
        summary = TrainSummary.load(spec.run_dir)
        first_spec, first = self._first = self._first or (spec, summary)
        mine, its = (load_parameters(Path(each.last_checkpoint)) for each in (summary, first))
        if mine.keys() != its.keys() or not all(torch.equal(mine[name], its[name]) for name in its):
            self.found.faults.append(f"{spec.name} has other weights than {first_spec.name}")

    def _submit(self, verb: str, name: str) -> str | None:
        """None where it came to its end, else its exit status and the last that it said."""
        self.found.submitted += verb == "train"
        command = [sys.executable, "-m", "ray_jobs", verb, *self._base, f"name={name}"]
        env = os.environ | {"RAY_ADDRESS": self._address}
        done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return None
        if "Traceback" in done.stdout + done.stderr:
            self.found.faults.append(f"{verb} ended with a traceback: {(done.stdout + done.stderr)[-2000:]}")
        return f"{done.returncode}: {(done.stderr.strip() or done.stdout.strip())[-300:]}"

    def check_steps(self) -> None:
        """Each training's losses are the first one's, each step once."""
        assert self._first is not None, self.found
        expected: dict[int, float] = {}
        for name in self.found.rounds:
            spec = build_spec(self._base, name)
            summary = TrainSummary.load(spec.run_dir)
            losses = history(spec, summary.mlflow_run_id, "train/loss")
            expected = expected or losses
            if list(losses) != list(range(load_cursor(Path(summary.last_checkpoint)).step)) or losses != expected:
                self.found.faults.append(f"{name}: {len(losses)} losses are not the first training's {len(expected)}")


class Faults:
    """What breaks, how often it did, and what could not be broken.

    Args:
        cluster: on which all runs; gets its nodes for training here.
        tracking: its server.
        disk: the file system of the runs, to be filled; None where it is not a small one.
        pause_s: between one fault and the next, and how long the disk stays full, and the tracking server away.
    """

    def __init__(self, cluster: Cluster, tracking: TrackingServer, disk: Path | None, pause_s: float) -> None:
        self._pause_s = pause_s
        self.done: Counter[str] = Counter()
        self.failed: list[str] = []
        self._cluster, self._tracking, self._disk = cluster, tracking, disk
        self._nodes = [cluster.add_node(**NODE) for _ in range(2)]

    def run(self, deadline: float) -> None:
        """Each kind once, and on until the deadline."""
        kinds: list[Callable[[], None]] = [
            self.kill_predictor,
            self.kill_worker,
            self.kill_encoder,
            self.stop_tracking,
            self.kill_raylet,
            *([self.fill_disk] if self._disk else []),
        ]
        for number, kind in enumerate(itertools.cycle(kinds)):
            time.sleep(self._pause_s)
            if number >= len(kinds) and time.monotonic() > deadline:
                return
            print(f"{time.strftime('%H:%M:%S')}  {kind.__name__}", flush=True)
            try:
                kind()
            except Exception as error:  # noqa: BLE001  (such as a node that a busy machine does not start in time)
                self.failed.append(f"{kind.__name__}: {error!r}")
            else:
                self.done[kind.__name__] += 1

    def kill_predictor(self) -> None:
        os.kill(self._find(f"ServeReplica:{APP}:Predictor").pid, signal.SIGKILL)

    def kill_encoder(self) -> None:
        os.kill(self._find(f"ServeReplica:{APP}:MediaEncoder").pid, signal.SIGKILL)

    def kill_worker(self) -> None:
        os.kill(self._find("TrainWorker").pid, signal.SIGKILL)

    def kill_raylet(self) -> None:
        """SIGKILL to all processes of a node on which a training is; another comes ten seconds later."""
        node_id = self._find("TrainWorker").node_id
        [node] = [node for node in self._nodes if node.node_id == node_id]
        self._nodes.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)
        time.sleep(NEXT_NODE_S)
        self._nodes.append(self._cluster.add_node(**NODE))

    def stop_tracking(self) -> None:
        self._tracking.kill()
        time.sleep(self._pause_s)
        self._tracking.start()

    def fill_disk(self) -> None:
        assert self._disk is not None
        filler = self._disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(2**16))
        time.sleep(self._pause_s)
        filler.unlink()

    def _find(self, name: str) -> Any:
        """A living actor whose class bears the name; waits until there is one."""
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline:
            if actors := [actor for actor in find_actors(self._cluster.address) if name in actor.class_name]:
                return actors[-1]
            time.sleep(0.5)
        raise TimeoutError(f"no {name} lives")


class Memory:
    """What processes have for themselves, MiB, sample by sample."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._of: dict[str, list[float]] = defaultdict(list)

    def watch(self, is_over: threading.Event) -> None:
        while not is_over.wait(5):
            with contextlib.suppress(ray.exceptions.RayError, OSError):
                for name, pid in self._list():
                    with contextlib.suppress(psutil.Error):
                        self._of[name].append(psutil.Process(pid).memory_full_info().uss / 2**20)

    def report(self) -> dict[str, dict[str, float]]:
        """Process -> medians of the second quarter of the samples and of the last one, and the most."""
        rows = {}
        for name, values in sorted(self._of.items()):
            n = max(1, len(values) // 4)
            then, now = median(values[n : 2 * n] or values), median(values[-n:])
            rows[name] = {"then": round(then), "at_the_end": round(now), "most": round(max(values)), "n": len(values)}
        return rows

    def _list(self) -> Iterator[tuple[str, int]]:
        for actor in find_actors(self._cluster.address):
            name = actor.class_name.rpartition(":")[2]
            if "Serve" in actor.class_name or name == "ProxyActor":
                yield name, actor.pid
        for kind, processes in self._cluster.head_node.all_processes.items():
            yield from ((f"head's {kind}", each.process.pid) for each in processes)


def find_actors(address: str) -> list[Any]:
    return list_actors(address, filters=[("state", "=", "ALIVE")], limit=1000)


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Mount a file system of its own there; False where that is not allowed."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        yield False
        return
    try:
        yield True
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextlib.contextmanager
def running_cluster() -> Iterator[Cluster]:
    """The head; nodes for training are added by whoever kills them."""
    ports = {"dashboard_port": free_port(), "dashboard_agent_listen_port": None}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "include_dashboard": True, **ports})
    try:
        ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Service]:
    encoder_dir = make_encoder(folder / "encoder")
    bundle = load_bundle(make_bundle(folder / "bundle", folder / "served_backbone", encoder_dir))
    port = free_port()
    # all nodes have one IP, and the head is what is not killed here
    ray_serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    try:
        args = {"bundle": str(bundle.folder), "artifacts": str(folder / "artifacts")}
        ray_serve.run(build_app(args), name=APP)
        yield Service(f"http://127.0.0.1:{port}", bundle, {MODEL: bundle.build_mllm()}, encoder_dir, args)
    finally:
        ray_serve.shutdown()


def run(minutes: float, pause_s: float, epochs: int, n_clients: int, folder: Path) -> dict[str, Any]:
    asked, is_over = Asked(), threading.Event()
    tracking = TrackingServer(f"sqlite:///{folder / 'tracking.db'}", folder / "tracked")
    with small_disk(folder / "runs") as is_mounted, running_cluster() as cluster:
        tracking.start()
        faults = Faults(cluster, tracking, folder / "runs" if is_mounted else None, pause_s)
        memory = Memory(cluster)
        base = [*build_base(folder, epochs), *SETTINGS, f"tracking.uri={tracking.uri}"]
        trainings = Trainings(base, cluster.address)
        try:
            with serving(folder) as service:
                expected = {(words, "words"): service.expected(words) for words in WORDS}
                expected |= {(words, "picture"): service.expected(words, "image", picture()) for words in WORDS}
                clients = (service, expected, asked, is_over)
                threads = [threading.Thread(target=ask_on, args=clients) for _ in range(n_clients)]
                threads += [threading.Thread(target=run, args=(is_over,)) for run in (memory.watch, trainings.run)]
                for thread in threads:
                    thread.start()
                try:
                    faults.run(time.monotonic() + 60 * minutes)
                finally:
                    is_over.set()
                    for thread in threads:
                        thread.join()
            trainings.check_steps()
        finally:
            tracking.kill()
    return {
        "minutes": minutes,
        "faults": dict(faults.done),
        "faults_not_made": faults.failed,
        "requests": vars(asked) | {"asked_again": dict(asked.asked_again)},
        "trainings": vars(trainings.found) | {"rounds": len(trainings.found.rounds)},
        "memory_mib": memory.report(),
    }


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=60.0, help="at least; each fault is made once in any case")
    parser.add_argument("--pause", type=float, default=30.0, help="seconds between faults, and that some last")
    parser.add_argument("--epochs", type=int, default=15, help="of each training; 13 steps make one")
    parser.add_argument("--clients", type=int, default=3, help="that ask at the same time")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        found = run(options.minutes, options.pause, options.epochs, options.clients, Path(name))
    print(json.dumps(found))
    return 1 if found["requests"]["lost"] or found["trainings"]["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
