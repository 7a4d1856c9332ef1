"""What the doctor makes of a cluster's facts: right where the job would fail, and silent where it would not."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ray_jobs.config import RunSpec, load_run_spec
from ray_jobs.doctor import checks
from ray_jobs.doctor.checks import GIB
from ray_jobs.doctor.nodes import NodeFacts, _find_confinement
from serve.tools.sandbox.confine import Mechanisms

NODE = NodeFacts(
    name="a",
    resources={"CPU": 8.0, "object_store_memory": 4.0 * GIB},
    versions={"python": "3.11.9", "torch": "2.13.0"},
    gpus=(),
    gpu_bytes=0,
    nccl="",
    memory_bytes=32 * GIB,
    free_disk_bytes=50 * GIB,
    shm_bytes=8 * GIB,
    sees_run=True,
    fault="",
    encoder="tiny_imagebind-1",
    has_encoder=True,
    confinement="a user of its own and namespaces for each call, Landlock 7, filtered system calls",
    confinement_gaps=(),
)
GPU_NODE = replace(
    NODE, name="g", gpus=("A100",) * 4, gpu_bytes=40 * GIB, nccl="2.27", resources={"CPU": 32.0, "GPU": 4.0}
)


def spec_of(tmp_path: Path, *overrides: str) -> RunSpec:
    return load_run_spec(None, [f"runs_dir={tmp_path}", "name=x", *overrides])


def test_a_sound_cluster_has_no_findings_to_mend(tmp_path: Path) -> None:
    spec, nodes = spec_of(tmp_path, "train.workers=2"), [NODE, replace(NODE, name="b")]
    findings = [
        checks.check_answers(nodes, []),
        checks.check_versions(nodes),
        checks.check_gpus(spec, nodes),
        checks.check_resources(spec, nodes),
        checks.check_storage(spec, nodes),
        checks.check_disk(nodes, GIB),
        *checks.check_object_store(nodes, GIB),
        checks.check_memory(spec, nodes, 3 * GIB),
        checks.check_encoder(nodes),
        checks.check_confinement(nodes),
        checks.check_token(nodes, {"RAY_AUTH_MODE": "token"}),
    ]
    assert [finding.state for finding in findings] == ["ok"] * len(findings)
    assert not any(finding.cure for finding in findings)


def test_nodes_apart_in_packages_are_named() -> None:
    finding = checks.check_versions([NODE, replace(NODE, name="b", versions={"python": "3.11.9", "torch": "2.12.0"})])
    assert (finding.state, finding.found) == ("fails", "torch 2.13.0 on a, 2.12.0 on b")
    finding = checks.check_versions([NODE, replace(NODE, name="b", versions={"python": "3.11.9", "torch": ""})])
    assert (finding.state, finding.found) == ("fails", "not installed: torch on b")


def test_gpus_that_are_missing_or_differ(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, "train.use_gpu=true", "train.workers=4")
    assert checks.check_gpus(spec, [NODE]).state == "fails"
    assert checks.check_gpus(spec, [NODE, GPU_NODE]).state == "ok"
    mixed = checks.check_gpus(spec, [GPU_NODE, replace(GPU_NODE, name="h", gpus=("L4",))])
    assert (mixed.state, mixed.found) == ("warning", "A100 on g, L4 on h")
    apart = checks.check_gpus(spec, [GPU_NODE, replace(GPU_NODE, name="h", nccl="2.21")])
    assert (apart.state, apart.found) == ("fails", "NCCL 2.27 on g, 2.21 on h")


@pytest.mark.parametrize(("workers", "state"), [(4, "ok"), (8, "fails")])
def test_workers_need_gpus_and_a_cpu_for_their_data(tmp_path: Path, workers: int, state: str) -> None:
    spec = spec_of(tmp_path, "train.use_gpu=true", f"train.workers={workers}")
    finding = checks.check_resources(spec, [NODE, GPU_NODE])
    assert finding.state == state
    assert f"{workers} worker(s)" in finding.found
    few = replace(NODE, resources={"CPU": 2.0})
    assert checks.check_resources(spec_of(tmp_path, "train.workers=2"), [few]).state == "fails"


def test_a_folder_that_a_node_does_not_see_or_cannot_write(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    blind = checks.check_storage(spec, [NODE, replace(NODE, name="b", sees_run=False, fault="it does not see it")])
    assert (blind.state, blind.found) == ("fails", f"b do not see {spec.run_dir}")
    closed = checks.check_storage(spec, [replace(NODE, fault="Read-only file system")])
    assert closed.state == "fails"
    assert "Read-only file system" in closed.found


def test_disks_stores_and_memory_that_are_too_small(tmp_path: Path) -> None:
    assert checks.check_disk([NODE, replace(NODE, name="b", free_disk_bytes=GIB)], 2 * GIB).state == "fails"
    shm, store = checks.check_object_store([replace(NODE, shm_bytes=64 * 2**20)], 3 * GIB)
    assert (shm.what, shm.state) == ("/dev/shm", "warning")
    assert (store.what, store.state) == ("object store", "warning")
    spec = spec_of(tmp_path, "train.workers=4")
    assert checks.check_memory(spec, [NODE], 9 * GIB).state == "fails"
    gpu_spec = spec_of(tmp_path, "train.workers=4", "train.use_gpu=true")
    assert checks.check_memory(gpu_spec, [GPU_NODE], 39 * GIB).state == "fails"
    assert checks.check_memory(gpu_spec, [GPU_NODE], 30 * GIB).state == "ok"


def test_silent_nodes_missing_encoders_and_open_clusters() -> None:
    assert checks.check_answers([NODE], ["b"]).state == "fails"
    assert checks.check_encoder([replace(NODE, has_encoder=False, encoder="no file")]).state == "warning"
    two = [NODE, replace(NODE, name="b")]
    assert checks.check_token(two, {}).state == "warning"
    assert checks.check_token([NODE], {"RAY_ADDRESS": "10.0.0.1:6379"}).state == "warning"
    assert checks.check_token([NODE], {}).state == "ok"


def test_what_does_not_hold_of_the_tools_confinement_is_said_by_node() -> None:
    bare = Mechanisms("shared", 0, False)
    weak = replace(NODE, name="b", confinement=bare.describe(), confinement_gaps=tuple(bare.gaps()))
    finding = checks.check_confinement([NODE, weak, replace(weak, name="c")])
    assert finding.state == "warning", "no job needs it"
    assert "Landlock 7, filtered system calls on a" in finding.found
    assert "no Landlock, unfiltered system calls on b and c" in finding.found
    assert "tools and decoders may use the network" in finding.found


def test_this_machines_confinement_is_what_its_tools_get(monkeypatch: pytest.MonkeyPatch) -> None:
    """The doctor's way (another process, JSON) and the workers' own find the same."""
    code = "from serve.tools.sandbox.confine import *; print(find_mechanisms().to_json())"
    own = Mechanisms.parse(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    assert _find_confinement() == (own.describe(), tuple(own.gaps()))
    monkeypatch.setattr("ray_jobs.doctor.nodes._CONFINEMENT", "serve.no_such_module")
    words, gaps = _find_confinement()
    assert "No module named serve.no_such_module" in words
    assert len(gaps) == 1
