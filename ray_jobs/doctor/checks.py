"""What would keep a job from running, or hurt it: each finding with its cure. Facts in, findings out."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ray_jobs.cluster import tagged
from ray_jobs.config import RunSpec
from ray_jobs.doctor.nodes import NodeFacts
from ray_jobs.estimate.dry_run import WorkerNeed
from ray_jobs.train.checkpoint import count_bytes
from ray_jobs.tune.search import TrialNeed, count_fitting

GIB = 2**30
GPU_SPARE = 0.9  # of a GPU's memory can be planned with: context and fragmentation take the rest
SHARED_FRAC = 0.5  # of a node's object store: what all ranks read stays in it, what is on its way comes on top
CHECKPOINTS = 3  # that lie there at a time: the last, the best and the one that is being written
GROWS = "the cluster grows by itself, and has to have nodes of a type"  # which Ray tells nobody


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


def find_training_nodes(spec: RunSpec, nodes: Sequence[NodeFacts]) -> list[NodeFacts]:
    """Those on which a worker of the training may be placed."""
    return [node for node in nodes if _count_places(spec, node) > 0]


def check_gpus(spec: RunSpec, nodes: Sequence[NodeFacts], grows: bool) -> Finding:
    """GPUs of one kind and one NCCL on the nodes to train on, where the training uses any.

    Args:
        spec: the run config.
        nodes: all of them.
        grows: whether an autoscaler may bring others.
    """
    tag = spec.train.node_resource
    with_gpus = [node for node in nodes if node.gpus and (tag is None or node.resources.get(tag))]
    found = ", ".join(f"{len(node.gpus)} x {node.gpus[0]} on {node.name}" for node in with_gpus) or "none"
    if not spec.train.use_gpu:
        return Finding("GPUs", "ok", f"{found}; train.use_gpu is false")
    if not with_gpus:
        of_kind = "GPUs" if tag is None else f"GPUs and the resource {tag}"
        if grows:
            return Finding("GPUs", "warning", f"no node with {of_kind} yet", f"{GROWS} with {of_kind}")
        return Finding("GPUs", "fails", f"no node with {of_kind}", f"add nodes with {of_kind}, or mend the config")
    if len(kinds := _group(with_gpus, lambda node: node.gpus[0])) > 1:
        cure = "all workers wait for the slowest: keep the training on nodes of one kind"
        return Finding("GPUs", "warning", _say_groups(kinds), cure)
    if len(nccl := _group(with_gpus, lambda node: node.nccl)) > 1:
        return Finding("GPUs", "fails", f"NCCL {_say_groups(nccl)}", "install the same torch build on every node")
    return Finding("GPUs", "ok", f"{found}, NCCL {with_gpus[0].nccl}")


def check_network(spec: RunSpec, nodes: Sequence[NodeFacts]) -> list[Finding]:
    """Whether NCCL has more than TCP between nodes; of a training on the GPUs of one node, nothing.

    Args:
        spec: the run config.
        nodes: to train on.
    """
    if not spec.train.use_gpu or spec.train.min_workers <= max(_count_places(spec, node) for node in nodes):
        return []
    if plain := [node.name for node in nodes if not node.fabric]:
        found = f"{' and '.join(plain)} have no EFA or InfiniBand: NCCL goes over TCP between nodes"
        if spec.train.zero_stage < 3:  # no more than the adapter's gradients
            return [Finding("network", "ok", f"{found}, which train.zero_stage={spec.train.zero_stage} can do with")]
        cure = "take nodes with such cards in one placement group (cluster.yaml), or train.zero_stage=2 if that fits"
        return [Finding("network", "warning", f"{found}, and ZeRO-3 sends the weights at every step", cure)]
    if deaf := [node.name for node in nodes if node.fabric == "efa" and not node.has_net_plugin]:
        found = f"NCCL finds no plugin for EFA (libnccl-net.so) on {' and '.join(deaf)} and goes over TCP"
        return [Finding("network", "warning", found, "install aws-ofi-nccl there, where the linker finds it")]
    return [Finding("network", "ok", _say_groups(_group(nodes, lambda node: node.fabric)))]


def check_resources(spec: RunSpec, nodes: Sequence[NodeFacts], grows: bool) -> Finding:
    """Whether the workers, and beside each the actor that streams its packs, find room; arguments: `check_gpus`."""
    fewest = spec.train.min_workers
    need = TrialNeed.of(spec.train, fewest)
    gpus = f" and {need.gpus_per_worker} GPU" if need.gpus_per_worker else ""
    where = f" on nodes with the resource {need.node_resource}" if need.node_resource else ""
    asked = f"{fewest} worker(s) of {need.cpus_per_worker:g} CPU(s){gpus}{where}, and a CPU for the data of each"
    have = ", ".join(f"{n.resources.get('CPU', 0):g} CPU(s) and {n.resources.get('GPU', 0):g} GPU(s)" for n in nodes)
    if count_fitting(need, [node.resources for node in nodes]) >= 1:
        return Finding("workers", "ok", f"{asked} fit into {have}")
    found = f"the config asks for {asked}; the nodes have {have}"
    if grows:
        return Finding("workers", "warning", found, f"{GROWS} and number for that; the job waits for them")
    cure = "lower train.workers or train.cpus_per_worker, raise ray.num_cpus, or let the autoscaler add nodes"
    return Finding("workers", "fails", found, cure)


def check_backbone(spec: RunSpec, nodes: Sequence[NodeFacts], fault_here: str) -> Finding:
    """Whether the backbone can be loaded: by the driver, and on the nodes to train on.

    Args:
        spec: the run config.
        nodes: to train on.
        fault_here: why the driver cannot; "" where it can.
    """
    name = spec.model.backbone
    faults = _group([node for node in nodes if node.backbone_fault], lambda node: node.backbone_fault)
    if fault_here or faults:
        cure = "name a folder in Hugging Face form that all nodes see in model.backbone, or download it on each of them"
        return Finding("backbone", "fails", fault_here or _say_groups(faults), cure)
    if spec.model.quantize != "none" and (bare := [node.name for node in nodes if not node.bitsandbytes]):
        found = f"model.quantize={spec.model.quantize} needs bitsandbytes, which is not on {', '.join(bare)}"
        return Finding(
            "backbone", "fails", found, "install the extra `gpu` there (cluster.yaml does), or set model.quantize=none"
        )
    return Finding("backbone", "ok", name)


def check_storage(spec: RunSpec, nodes: Sequence[NodeFacts]) -> Finding:
    """Whether every node sees the run's folder and can write there."""
    if blind := [node.name for node in nodes if not node.sees_run]:
        cure = "let runs_dir lie on a network file system or in a bucket (s3://, gs://)"
        return Finding("run folder", "fails", f"{', '.join(blind)} do not see {spec.run_dir}", cure)
    if faults := [f"{node.name}: {node.fault}" for node in nodes if node.fault]:
        cure = "give this user the right to write there, or set runs_dir to another folder"
        return Finding("run folder", "fails", f"{spec.run_dir} cannot be written: {'; '.join(faults)}", cure)
    return Finding("run folder", "ok", f"{spec.run_dir}: seen and written from all nodes")


def check_disk(nodes: Sequence[NodeFacts], n_trained: int, n_there: int) -> Finding:
    """Whether checkpoints fit where they are written.

    Args:
        nodes: all of them.
        n_trained: parameters.
        n_there: checkpoints that lie there already, of the job that has most.
    """
    n_more = max(1, CHECKPOINTS - n_there)
    needed = n_more * count_bytes(n_trained)
    least = min(nodes, key=lambda node: node.free_disk_bytes)
    found = (
        f"{least.free_disk_bytes / GIB:.1f} GiB are free on {least.name}; "
        f"{n_more} checkpoint(s) more take {needed / GIB:.2f} GiB"
    )
    if least.free_disk_bytes < needed:
        return Finding("disk", "fails", found, "make room, or set runs_dir to a larger disk")
    return Finding("disk", "ok", found)


def check_object_store(nodes: Sequence[NodeFacts], shared_bytes: int) -> list[Finding]:
    """Whether Ray's object store lies in memory, and holds what all ranks read, whole on each node.

    Args:
        nodes: to train on.
        shared_bytes: of that.
    """
    findings = []
    spilled = [n.name for n in nodes if n.shm_bytes < n.resources.get("object_store_memory", 0)]
    if spilled:
        found = f"/dev/shm is smaller than the object store on {', '.join(spilled)}, which then lies on the disk"
        cure = "raise /dev/shm (docker run --shm-size, a memory-backed emptyDir), or lower object_store_memory"
        findings.append(Finding("/dev/shm", "warning", found, cure))
    least = min(nodes, key=lambda node: node.resources.get("object_store_memory", 0))
    store = least.resources.get("object_store_memory", 0)
    found = f"{store / GIB:.1f} GiB on {least.name}; media vectors and plan take {shared_bytes / GIB:.2f} on each node"
    if shared_bytes > SHARED_FRAC * store:
        cure = "raise object_store_memory"
        findings.append(Finding("object store", "warning", f"{found}: they are spilled to the disk", cure))
    else:
        findings.append(Finding("object store", "ok", found))
    return findings


def check_memory(spec: RunSpec, nodes: Sequence[NodeFacts], need: WorkerNeed) -> list[Finding]:
    """Whether workers fit, as `train --dry-run` counts, beside what else runs there.

    Args:
        spec: the run config.
        nodes: to train on. Train fills one before it takes the next.
        need: of a worker.
    """
    findings = []
    if spec.train.use_gpu:
        least = min(nodes, key=lambda node: node.free_gpu_bytes)
        room = f"a GPU on {least.name} has {least.gpu_bytes / GIB:.1f} GiB, {least.free_gpu_bytes / GIB:.1f} free"
        found = f"a worker takes about {need.step / GIB:.1f} GiB; {room}"
        smallest = min(node.gpu_bytes for node in nodes)
        cure = "raise train.zero_stage, lower train.pack_tokens, set model.gradient_checkpointing, or use more workers"
        findings.append(
            _judge_room("GPU memory", found, need.step, smallest * GPU_SPARE, least.free_gpu_bytes * GPU_SPARE, cure)
        )
    rooms = []
    for node in nodes:
        n_workers = min(spec.train.min_workers, _count_places(spec, node))
        rooms.append((node.free_memory_bytes - n_workers * need.host, n_workers, node))
    _, n_workers, least = min(rooms, key=lambda room: room[0])
    needed = n_workers * need.host
    found = (
        f"{n_workers} worker(s) on {least.name} take about {needed / GIB:.1f} GiB at their peak, and files of "
        f"{need.mapped / GIB:.1f} GiB while they load; {least.memory_bytes / GIB:.1f} GiB are there, "
        f"{least.free_memory_bytes / GIB:.1f} free"
    )
    cure = "raise train.zero_stage, lower train.pack_tokens, use fewer workers a node, or take nodes with more memory"
    findings.append(_judge_room("memory", found, needed, least.memory_bytes, least.free_memory_bytes, cure))
    return findings


def _judge_room(what: str, found: str, needed: float, total: float, free: float, cure: str) -> Finding:
    if needed > total:
        return Finding(what, "fails", found, cure)
    if needed > free:
        return Finding(what, "warning", found, f"end what else runs there, or {cure}")
    return Finding(what, "ok", found)


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


def _count_places(spec: RunSpec, node: NodeFacts) -> int:
    """Workers of the training that find room on a node of their own."""
    asked = {"CPU": spec.train.cpus_per_worker} | tagged(spec.train.node_resource, 1)
    if spec.train.use_gpu:
        asked["GPU"] = 1
    return min(math.floor(node.resources.get(name, 0) / amount) for name, amount in asked.items())


def _group(nodes: Sequence[NodeFacts], key: Callable[[NodeFacts], Any]) -> dict[Any, list[str]]:
    groups: dict[Any, list[str]] = defaultdict(list)
    for node in nodes:
        groups[key(node)].append(node.name)
    return groups


def _say_groups(groups: Mapping[Any, Sequence[str]]) -> str:
    return ", ".join(f"{value} on {' and '.join(names)}" for value, names in groups.items())
