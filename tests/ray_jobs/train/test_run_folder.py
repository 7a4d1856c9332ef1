"""The run's folder: one job at a time, and a node that does not see it is told at once."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from data_pipeline import lease, storage
from data_pipeline.errors import InputError
from data_pipeline.locations import BucketPath, Location, locate
from ray_jobs.train import run_folder
from ray_jobs.train.run_folder import check_shared, only_one, prove_shared, shown_to_all

HOLD = """
import sys, time
from pathlib import Path
from ray_jobs.train.run_folder import only_one
with only_one(Path(sys.argv[1]), "train-abc"):
    print("held", flush=True)
    time.sleep(60)
"""


def assert_held(folder: Location, pid: int) -> None:
    """The job is refused, and another one is not."""
    who = rf"process {pid} on .* runs this very job .train-abc in {re.escape(str(folder))}"
    with pytest.raises(InputError, match=who), only_one(folder, "train-abc"):
        raise AssertionError("two at a time")
    with only_one(folder, "train-other"):
        pass


def test_a_job_that_is_submitted_twice_is_refused_until_the_first_one_ends(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        assert_held(folder, first.pid)
        assert not (folder / ".train-other.running").exists()
    finally:
        first.kill()  # as the power does
        first.wait(10)
    with only_one(folder, "train-abc"):
        pass


def test_a_job_is_refused_in_a_bucket_too_and_interrupted_where_another_took_it(
    bucket: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lease, "BEAT_S", 1.0)
    folder = locate(f"{bucket}/runs/mine")
    with only_one(folder, "train-abc"):
        assert_held(folder, os.getpid())
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest's own workers ignore it
    try:
        with pytest.raises(KeyboardInterrupt), only_one(folder, "train-abc"):
            lose_claim(folder)
    finally:
        signal.signal(signal.SIGINT, ignored)
    assert "another process has taken over train-abc in" in capsys.readouterr().err


def lose_claim(folder: Location) -> None:
    """As one whose lease another process took while it could not reach the bucket; waits to be interrupted."""
    storage.remove_folder(folder)
    time.sleep(10)


def test_a_node_that_does_not_see_the_drivers_file_refuses(tmp_path: Path) -> None:
    proof = tmp_path / "run" / ".shared-1"
    with shown_to_all(proof):
        check_shared(proof)
        with pytest.raises(InputError, match=r"node .* does not see .*elsewhere.* storage that all nodes share"):
            check_shared(tmp_path / "elsewhere" / ".shared-1")
    with pytest.raises(InputError, match="does not see"):
        check_shared(proof)


def of_cluster(monkeypatch: pytest.MonkeyPatch, *others: str, answers: dict[str, bool]) -> list[str]:
    """A cluster of the driver's node "here" and others, which answer so; returns the nodes that are asked, in time."""
    nodes = [
        {"NodeID": name, "NodeManagerHostname": f"host-{name}", "Alive": name != "dead", "Resources": {"CPU": 8.0}}
        for name in ("here", *others)
    ]
    nodes.append({"NodeID": "head", "NodeManagerHostname": "host-head", "Alive": True, "Resources": {"memory": 1.0}})
    asked: list[str] = []

    def ask(nodes: Any, task: Any, proof: Path, *, patience_s: float) -> tuple[dict[str, bool], dict[str, str]]:
        assert proof.exists()
        asked.extend(node["NodeID"] for node in nodes)
        return answers, {}

    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "here"))
    monkeypatch.setattr(run_folder, "ask_nodes", ask)
    return asked


def test_every_other_node_with_cpus_is_asked_for_the_drivers_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = of_cluster(monkeypatch, "a", "b", "dead", answers={"a": True})  # b says nothing, and holds nobody up
    prove_shared(tmp_path / "run")
    assert asked == ["a", "b"]
    assert not list((tmp_path / "run").iterdir())
    of_cluster(monkeypatch, "a", "b", answers={"a": True, "b": False})
    with pytest.raises(InputError, match=rf"^node host-b does not see {tmp_path / 'run'}, .* that all nodes share"):
        prove_shared(tmp_path / "run")
    assert not list((tmp_path / "run").iterdir())


def test_one_node_and_a_bucket_cost_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not of_cluster(monkeypatch, answers={})
    prove_shared(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    asked = of_cluster(monkeypatch, "a", answers={"a": False})
    prove_shared(BucketPath("s3", "bucket/run"))
    assert not asked
