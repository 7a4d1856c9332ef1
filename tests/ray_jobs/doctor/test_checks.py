"""What the doctor makes of a cluster's facts: right where the job would fail, and silent where it would not."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.locations import BucketPath
from ray_jobs.config import RunSpec, load_run_spec
from ray_jobs.doctor import checks
from ray_jobs.doctor import nodes as nodes_module
from ray_jobs.doctor.checks import GIB
from ray_jobs.doctor.job import _check_sizes, count_checkpoints, find_fault_here
from ray_jobs.doctor.nodes import NodeFacts, _find_confinement, find_backbone_fault
from ray_jobs.estimate.dry_run import WorkerNeed
from ray_jobs.train.checkpoint import STATE_FILE
from serve.tools.sandbox.confine import Mechanisms

NODE = NodeFacts(
    name="a",
    resources={"CPU": 8.0, "object_store_memory": 4.0 * GIB},
    versions={"python": "3.11.9", "torch": "2.13.0"},
    gpus=(),
    gpu_bytes=0,
    free_gpu_bytes=0,
    nccl="",
    fabric="",
    has_net_plugin=False,
    memory_bytes=32 * GIB,
    free_memory_bytes=30 * GIB,
    free_disk_bytes=50 * GIB,
    shm_bytes=8 * GIB,
    sees_run=True,
    fault="",
    backbone_fault="",
    bitsandbytes="",
    encoder="tiny_imagebind-1",
    has_encoder=True,
    confinement="a user of its own and namespaces for each call, Landlock 7, filtered system calls",
    confinement_gaps=(),
)
GPU_NODE = replace(
    NODE,
    name="g",
    gpus=("A100",) * 4,
    gpu_bytes=40 * GIB,
    free_gpu_bytes=39 * GIB,
    nccl="2.27",
    resources={"CPU": 32.0, "GPU": 4.0, "object_store_memory": 4.0 * GIB},
)


def need_of(step: float, host: float = 1.0) -> WorkerNeed:
    """In GiB."""
    return WorkerNeed(step * GIB, host * GIB, 2 * GIB, n_trained=10**6)


def spec_of(tmp_path: Path, *overrides: str) -> RunSpec:
    return load_run_spec(None, [f"runs_dir={tmp_path}", "name=x", *overrides])


def test_a_sound_cluster_has_no_findings_to_mend(tmp_path: Path) -> None:
    spec, nodes = spec_of(tmp_path, "train.workers=2"), [NODE, replace(NODE, name="b")]
    findings = [
        checks.check_answers(nodes, []),
        checks.check_versions(nodes),
        checks.check_gpus(spec, nodes, grows=False),
        checks.check_resources(spec, nodes, grows=False),
        checks.check_storage(spec, nodes),
        checks.check_backbone(spec, nodes, ""),
        checks.check_disk(nodes, 10**8, n_there=0),
        *checks.check_object_store(nodes, GIB),
        *checks.check_memory(spec, nodes, need_of(3, host=3)),
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
    assert checks.check_gpus(spec, [NODE], grows=False).state == "fails"
    assert checks.check_gpus(spec, [NODE, GPU_NODE], grows=False).state == "ok"
    mixed = checks.check_gpus(spec, [GPU_NODE, replace(GPU_NODE, name="h", gpus=("L4",))], grows=False)
    assert (mixed.state, mixed.found) == ("warning", "A100 on g, L4 on h")
    apart = checks.check_gpus(spec, [GPU_NODE, replace(GPU_NODE, name="h", nccl="2.21")], grows=False)
    assert (apart.state, apart.found) == ("fails", "NCCL 2.27 on g, 2.21 on h")


def test_gpus_of_several_nodes_want_more_than_tcp_where_weights_pass_among_them(tmp_path: Path) -> None:
    def check(overrides: list[str], **network: Any) -> list[tuple[str, str]]:
        nodes = [replace(GPU_NODE, name=name, **network) for name in "gh"]
        found = checks.check_network(spec_of(tmp_path, "train.use_gpu=true", *overrides), nodes)
        return [(finding.state, finding.found) for finding in found]

    within, across, parted = ["train.workers=4"], ["train.workers=8"], ["train.workers=8", "train.zero_stage=3"]
    assert check(within) == []
    ((state, found),) = check(across)
    assert (state, "over TCP" in found) == ("ok", True)
    ((state, found),) = check(parted)
    assert (state, "g and h have no EFA or InfiniBand" in found) == ("warning", True)
    ((state, found),) = check(parted, fabric="efa")
    assert (state, "libnccl-net.so" in found) == ("warning", True)
    assert check(parted, fabric="efa", has_net_plugin=True) == [("ok", "efa on g and h")]
    assert check(parted, fabric="mlx5_core") == [("ok", "mlx5_core on g and h")]


def test_the_driver_of_a_nodes_fast_cards_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card, driver = tmp_path / "cards/rdmap0s6", tmp_path / "drivers/efa"
    monkeypatch.setattr(nodes_module, "_RDMA_CARDS", tmp_path / "cards")
    assert nodes_module._find_fabric() == ""
    (card / "device").mkdir(parents=True)
    driver.mkdir(parents=True)
    (card / "device/driver").symlink_to(driver)
    assert nodes_module._find_fabric() == "efa"
    monkeypatch.setattr(nodes_module, "_NET_PLUGIN", "libc.so.6")
    assert nodes_module._finds_net_plugin()
    monkeypatch.setattr(nodes_module, "_NET_PLUGIN", "libnccl-net-of-nobody.so")
    assert not nodes_module._finds_net_plugin()


@pytest.mark.parametrize(("workers", "state"), [(4, "ok"), (8, "fails")])
def test_workers_need_gpus_and_a_cpu_for_their_data(tmp_path: Path, workers: int, state: str) -> None:
    spec = spec_of(tmp_path, "train.use_gpu=true", f"train.workers={workers}")
    finding = checks.check_resources(spec, [NODE, GPU_NODE], grows=False)
    assert finding.state == state
    assert f"{workers} worker(s)" in finding.found
    few = replace(NODE, resources={"CPU": 2.0})
    assert checks.check_resources(spec_of(tmp_path, "train.workers=2"), [few], grows=False).state == "fails"


def test_a_folder_that_a_node_does_not_see_or_cannot_write(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    blind = checks.check_storage(spec, [NODE, replace(NODE, name="b", sees_run=False, fault="it does not see it")])
    assert (blind.state, blind.found) == ("fails", f"b do not see {spec.run_dir}")
    closed = checks.check_storage(spec, [replace(NODE, fault="Read-only file system")])
    assert closed.state == "fails"
    assert "Read-only file system" in closed.found


def test_what_is_at_zero_is_a_warning_where_the_cluster_grows(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, "train.use_gpu=true", "train.workers=8", "train.node_resource=gpu_train")
    head = replace(NODE, resources={"memory": 1.0})
    for check, what in (
        (checks.check_gpus, "GPUs and the resource gpu_train"),
        (checks.check_resources, "8 worker(s)"),
    ):
        finding = check(spec, [head], grows=True)
        assert (finding.state, what in finding.found) == ("warning", True)
        assert "the cluster grows by itself" in finding.cure
        assert check(spec, [head], grows=False).state == "fails"


def test_only_nodes_that_are_meant_for_the_training_count(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, "train.use_gpu=true", "train.node_resource=gpu_train")
    of_training = replace(GPU_NODE, name="t", resources={**GPU_NODE.resources, "gpu_train": 4.0})
    serving = replace(GPU_NODE, name="s", gpus=("L4",) * 4, gpu_bytes=20 * GIB, free_gpu_bytes=0)
    assert checks.check_gpus(spec, [serving, of_training], grows=False).found == "4 x A100 on t, NCCL 2.27"
    assert "resource gpu_train" in checks.check_gpus(spec, [serving], grows=False).found
    assert checks.find_training_nodes(spec, [NODE, serving, of_training]) == [of_training]
    assert checks.find_training_nodes(spec_of(tmp_path, "train.use_gpu=true"), [NODE, serving]) == [serving]


def test_a_disk_holds_the_last_the_best_and_the_one_that_is_written(tmp_path: Path) -> None:
    n_trained = GIB // 12  # a checkpoint of a GiB
    nodes = [NODE, replace(NODE, name="b", free_disk_bytes=int(2.5 * GIB))]
    states = [checks.check_disk(nodes, n_trained, n_there).state for n_there in (0, 1, 2, 3)]
    assert states == ["fails", "ok", "ok", "ok"]
    assert checks.check_disk([replace(NODE, free_disk_bytes=GIB // 2)], n_trained, 3).state == "fails"
    for job, n_steps in (("train-a", 1), ("train-b", 2)):
        for step in range(n_steps):
            folder = tmp_path / "checkpoints" / job / f"step-{step:08d}"
            folder.mkdir(parents=True)
            (folder / STATE_FILE).write_text("{}")
    assert count_checkpoints(tmp_path) == 2
    assert count_checkpoints(tmp_path / "elsewhere") == 0
    assert count_checkpoints(BucketPath("s3", "bucket/run")) == 3


def test_what_ranks_share_lies_whole_on_each_node() -> None:
    small = replace(NODE, name="b", resources={"object_store_memory": GIB})
    shm, store = checks.check_object_store([replace(NODE, shm_bytes=64 * 2**20), small], int(0.6 * GIB))
    assert (shm.what, shm.state) == ("/dev/shm", "warning")
    assert (store.what, store.state) == ("object store", "warning")
    assert store.found.startswith("1.0 GiB on b; media vectors and plan take 0.60 on each node")


def test_memory_of_gpus_and_of_nodes(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, "train.workers=4")
    [finding] = checks.check_memory(spec, [NODE, replace(NODE, name="b")], need_of(9, host=9))
    assert (finding.state, "4 worker(s) on a take about 36.0 GiB" in finding.found) == ("fails", True)
    busy = replace(NODE, free_memory_bytes=GIB)
    assert [each.state for each in checks.check_memory(spec, [busy], need_of(1, host=1))] == ["warning"]
    spec = spec_of(tmp_path, "train.workers=4", "train.use_gpu=true")
    states = {
        (step, host): [finding.state for finding in checks.check_memory(spec, [GPU_NODE], need_of(step, host))]
        for step, host in ((39, 1), (30, 1), (35.5, 1), (30, 9))
    }
    assert states == {
        (39, 1): ["fails", "ok"],
        (30, 1): ["ok", "ok"],
        (35.5, 1): ["warning", "ok"],  # 36 GiB of 40 can be planned with, and of the 39 that are free 35
        (30, 9): ["ok", "fails"],
    }


def test_a_backbone_that_cannot_be_loaded_fails_where_it_would_train(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, "model.backbone=org/model")
    assert checks.check_backbone(spec, [NODE], "").state == "ok"
    finding = checks.check_backbone(spec, [NODE, replace(NODE, name="b", backbone_fault="it is gone")], "")
    assert (finding.state, finding.found) == ("fails", "it is gone on b")
    assert checks.check_backbone(spec, [], "no tokenizer").found == "no tokenizer"
    packed = spec_of(tmp_path, "model.quantize=nf4", "train.use_gpu=true")
    bare = checks.check_backbone(packed, [replace(GPU_NODE, bitsandbytes="0.48"), replace(GPU_NODE, name="h")], "")
    assert (bare.state, bare.found) == ("fails", "model.quantize=nf4 needs bitsandbytes, which is not on h")


def test_a_damaged_corpus_is_no_missing_one(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, "embed.encoder=tiny_imagebind")
    missing = _check_sizes(spec, [NODE], [NODE])[-1]
    assert (missing.what, missing.state) == ("corpus", "warning")
    folder = tmp_path / "x" / "corpus"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{")
    damaged = _check_sizes(spec, [NODE], [NODE])[-1]
    assert (damaged.what, damaged.state, "is damaged" in damaged.found) == ("corpus", "fails", True)


def test_what_the_driver_cannot_load(tmp_path: Path) -> None:
    assert find_fault_here(spec_of(tmp_path)) == ""
    assert "there is no GGUF file" in find_fault_here(spec_of(tmp_path, f"model.backbone={tmp_path / 'a.gguf'}"))
    assert "there is no backbone folder" in find_fault_here(spec_of(tmp_path, f"model.backbone={tmp_path / 'a'}"))


def test_a_backbone_without_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_backbone_fault("tiny") == ""
    assert "there is no backbone folder" in find_backbone_fault(str(tmp_path / "model"))
    monkeypatch.setattr("ray_jobs.doctor.nodes.load_tokenizer", lambda backbone: None)
    assert "holds none of model.safetensors" in find_backbone_fault(str(tmp_path))
    (tmp_path / "model.safetensors").touch()
    assert find_backbone_fault(str(tmp_path)) == ""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "not in the local cache" in find_backbone_fault("org/model-that-nobody-has")


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
