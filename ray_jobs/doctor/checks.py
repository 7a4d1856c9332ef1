"""What would keep a job from running, or hurt it: each finding with its cure. Facts in, findings out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ray_jobs.config import RunSpec
from ray_jobs.doctor.nodes import NodeFacts
from ray_jobs.tune.search import TrialNeed, count_fitting

GIB = 2**30
GPU_SPARE = 0.9  # of a GPU's memory can be planned with: context and fragmentation take the rest
CORPUS_SHARE = 0.5  # of the object store: the tokenised split stays in it, blocks on their way come on top


@dataclass(frozen=True)
class Finding:
    """One check.

    Attributes:
        what: was looked at.
        state: "fails" where the job would, "warning" where it would suffer.
        found: in one sentence.
        cure: in one sentence; "" where nothing is to be mended.
    """

    what: str
    state: Literal["ok", "warning", "fails"]
    found: str
    cure: str = ""

    def to_json(self) -> dict[str, str]:
        return dict(self.__dict__)


def check_answers(nodes: Sequence[NodeFacts], silent: Sequence[str]) -> Finding:
    """Whether all nodes answer."""
    if silent:
        return Finding(
            "nodes", "fails", f"without an answer: {', '.join(silent)}", "restart Ray there, or stop the node"
        )
    return Finding("nodes", "ok", f"{len(nodes)}: {', '.join(node.name for node in nodes)}")


def check_versions(nodes: Sequence[NodeFacts]) -> Finding:
    """Whether all packages are there, in one version everywhere: what one worker pickles another reads."""
    missing = [f"{name} on {node.name}" for node in nodes for name, version in node.versions.items() if not version]
    if missing:
        cure = "install the project there: pip install --no-deps -r requirements.lock && pip install --no-deps -e ."
        return Finding("packages", "fails", f"not installed: {', '.join(missing)}", cure)
    apart = []
    for name in nodes[0].versions:
        where = _group(nodes, lambda node, name=name: node.versions[name])
        if len(where) > 1:
            apart.append(f"{name} {_say_groups(where)}")
    if apart:
        cure = "install the same requirements.lock on every node, or start them from one image"
        return Finding("packages", "fails", "; ".join(apart), cure)
    return Finding("packages", "ok", ", ".join(f"{name} {version}" for name, version in nodes[0].versions.items()))


def check_gpus(spec: RunSpec, nodes: Sequence[NodeFacts]) -> Finding:
    """GPUs of one kind and one NCCL, where the training uses any."""
    with_gpus = [node for node in nodes if node.gpus]
    found = ", ".join(f"{len(node.gpus)} x {node.gpus[0]} on {node.name}" for node in with_gpus) or "none"
    if not spec.train.use_gpu:
        return Finding("GPUs", "ok", f"{found}; train.use_gpu is false")
    if not with_gpus:
        return Finding("GPUs", "fails", "none", "add GPU nodes, or set train.use_gpu=false")
    if len(kinds := _group(with_gpus, lambda node: node.gpus[0])) > 1:
        cure = "all workers wait for the slowest: keep the training on nodes of one kind"
        return Finding("GPUs", "warning", _say_groups(kinds), cure)
    if len(nccl := _group(with_gpus, lambda node: node.nccl)) > 1:
        return Finding("GPUs", "fails", f"NCCL {_say_groups(nccl)}", "install the same torch build on every node")
    return Finding("GPUs", "ok", f"{found}, NCCL {with_gpus[0].nccl}")


def check_resources(spec: RunSpec, nodes: Sequence[NodeFacts]) -> Finding:
    """Whether the workers, and beside each the actor that streams its packs, find room."""
    fewest = spec.train.min_workers
    need = TrialNeed.of(spec.train, fewest)
    gpus = f" and {need.gpus_per_worker} GPU" if need.gpus_per_worker else ""
    where = f" on nodes with the resource {need.node_resource}" if need.node_resource else ""
    asked = f"{fewest} worker(s) of {need.cpus_per_worker:g} CPU(s){gpus}{where}, and a CPU for the data of each"
    have = ", ".join(f"{n.resources.get('CPU', 0):g} CPU(s) and {n.resources.get('GPU', 0):g} GPU(s)" for n in nodes)
    if count_fitting(need, [node.resources for node in nodes]) < 1:
        cure = "lower train.workers or train.cpus_per_worker, raise ray.num_cpus, or let the autoscaler add nodes"
        return Finding("workers", "fails", f"the config asks for {asked}; the nodes have {have}", cure)
    return Finding("workers", "ok", f"{asked} fit into {have}")


def check_storage(spec: RunSpec, nodes: Sequence[NodeFacts]) -> Finding:
    """Whether every node sees the run's folder and can write there."""
    if blind := [node.name for node in nodes if not node.sees_run]:
        cure = "let runs_dir lie on a network file system or in a bucket (s3://, gs://)"
        return Finding("run folder", "fails", f"{', '.join(blind)} do not see {spec.run_dir}", cure)
    if faults := [f"{node.name}: {node.fault}" for node in nodes if node.fault]:
        cure = "give this user the right to write there, or set runs_dir to another folder"
        return Finding("run folder", "fails", f"{spec.run_dir} cannot be written: {'; '.join(faults)}", cure)
    return Finding("run folder", "ok", f"{spec.run_dir}: seen and written from all nodes")


def check_disk(nodes: Sequence[NodeFacts], needed: int) -> Finding:
    """Whether checkpoints fit where they are written."""
    least = min(nodes, key=lambda node: node.free_disk_bytes)
    free = f"{least.free_disk_bytes / GIB:.1f} GiB are free on {least.name}"
    if least.free_disk_bytes < needed:
        cure = "make room, or set runs_dir to a larger disk"
        return Finding("disk", "fails", f"{free}; checkpoints take {needed / GIB:.1f} GiB", cure)
    return Finding("disk", "ok", f"{free}; checkpoints take {needed / GIB:.2f} GiB")


def check_object_store(nodes: Sequence[NodeFacts], corpus_bytes: int) -> list[Finding]:
    """Whether Ray's object store lies in memory, and holds the corpus."""
    findings = []
    spilled = [n.name for n in nodes if n.shm_bytes < n.resources.get("object_store_memory", 0)]
    if spilled:
        found = f"/dev/shm is smaller than the object store on {', '.join(spilled)}, which then lies on the disk"
        cure = "raise /dev/shm (docker run --shm-size, a memory-backed emptyDir), or lower object_store_memory"
        findings.append(Finding("/dev/shm", "warning", found, cure))
    store = sum(node.resources.get("object_store_memory", 0) for node in nodes)
    found = f"{store / GIB:.1f} GiB on all nodes together, the corpus about {corpus_bytes / GIB:.2f}"
    if corpus_bytes > CORPUS_SHARE * store:
        cure = "raise object_store_memory, or add nodes"
        findings.append(Finding("object store", "warning", f"{found}: blocks will be spilled to the disk", cure))
    else:
        findings.append(Finding("object store", "ok", found))
    return findings


def check_memory(spec: RunSpec, nodes: Sequence[NodeFacts], worker_bytes: float) -> Finding:
    """Whether a worker fits, as `train --dry-run` counts."""
    fewest = spec.train.min_workers
    if spec.train.use_gpu:
        room = min((node.gpu_bytes for node in nodes if node.gpus), default=0) * GPU_SPARE
        where = "a GPU"
    else:
        room = sum(node.memory_bytes for node in nodes) / fewest
        where = "each worker of the nodes' memory"
    found = f"a worker takes about {worker_bytes / GIB:.1f} GiB, and {room / GIB:.1f} GiB are there for {where}"
    if worker_bytes > room:
        cure = "raise train.zero_stage, lower train.pack_tokens, set model.gradient_checkpointing, or use more workers"
        return Finding("memory", "fails", found, cure)
    return Finding("memory", "ok", found)


def check_encoder(nodes: Sequence[NodeFacts]) -> Finding:
    """Whether the encoder's weights are on every node: `embed` runs anywhere."""
    if lacking := [node for node in nodes if not node.has_encoder]:
        names = ", ".join(node.name for node in lacking)
        return Finding("encoder", "warning", f"on {names}: {lacking[0].encoder}", "mend that before `embed`")
    return Finding("encoder", "ok", nodes[0].encoder)


def check_confinement(nodes: Sequence[NodeFacts]) -> Finding:
    """What shuts the tools of a service in, on each node; a job needs none of it."""
    found = _say_groups(_group(nodes, lambda node: node.confinement))
    gaps = _group([node for node in nodes if node.confinement_gaps], lambda node: "; ".join(node.confinement_gaps))
    if gaps:
        cure = "before tools are served there: a newer kernel or user namespaces (docs/security.md)"
        return Finding("tools", "warning", f"{found}. Does not hold: {_say_groups(gaps)}", cure)
    return Finding("tools", "ok", found)


def check_token(nodes: Sequence[NodeFacts], environment: Mapping[str, str]) -> Finding:
    """Whether strangers are kept out of a cluster: who reaches its ports can run any code on it."""
    if environment.get("RAY_AUTH_MODE", "").lower() == "token":
        return Finding("token", "ok", "Ray asks for one (RAY_AUTH_MODE=token)")
    if len(nodes) == 1 and "RAY_ADDRESS" not in environment:
        return Finding("token", "ok", "not needed: this Ray is this job's own, on this machine")
    cure = "set RAY_AUTH_MODE=token on every node and for every client, and keep Ray's ports behind a firewall"
    return Finding("token", "warning", "whoever reaches the cluster's ports can run code on it", cure)


def _group(nodes: Sequence[NodeFacts], key: Callable[[NodeFacts], Any]) -> dict[Any, list[str]]:
    groups: dict[Any, list[str]] = defaultdict(list)
    for node in nodes:
        groups[key(node)].append(node.name)
    return groups


def _say_groups(groups: Mapping[Any, Sequence[str]]) -> str:
    return ", ".join(f"{value} on {' and '.join(names)}" for value, names in groups.items())
