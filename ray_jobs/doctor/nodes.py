"""What a node of the cluster is and has, as a task on that node finds it."""

from __future__ import annotations

import ctypes
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import ray
from huggingface_hub import constants, try_to_load_from_cache
from ray._common.utils import get_system_memory
from ray._private.utils import estimate_available_memory
from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue]
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME

from data_pipeline import storage
from data_pipeline.errors import InputError
from data_pipeline.locations import Location
from model.llm.backbone import load_tokenizer
from model.llm.gguf import is_gguf
from ray_jobs.cluster import ask_nodes
from ray_jobs.config import RunSpec

PACKAGES = ("torch", "ray", "transformers", "peft", "deepspeed", "mlflow", "pyarrow", "av", "pillow", "numpy")
WEIGHTS = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME)
LOOK_S = 120.0  # for all nodes to answer
_SHM = Path("/dev/shm")
_RDMA_CARDS = Path("/sys/class/infiniband")  # EFA's among them
_NET_PLUGIN = "libnccl-net.so"  # what NCCL itself opens by this name, of aws-ofi-nccl for example
_CONFINEMENT = "serve.tools.sandbox.confine"  # a program of the service's, which is not imported here
_CONFINEMENT_S = 60.0


@dataclass(frozen=True)
class NodeFacts:
    """One node.

    Attributes:
        name: its host name.
        resources: what Ray hands out there: "CPU", "GPU", and bytes of "memory" and "object_store_memory".
        versions: package -> version, "" where it is not installed; and "python".
        gpus: names of the GPUs that torch sees; () without CUDA.
        gpu_bytes: memory of the smallest of them; 0 without.
        free_gpu_bytes: what is free of the fullest of them.
        nccl: version that torch has, "" without CUDA.
        fabric: driver of the network cards by which GPUs of several nodes reach one another past the kernel, such as
            "efa" or "mlx5_core"; "" without any.
        has_net_plugin: whether NCCL finds a plugin for its network, without which it cannot use EFA.
        memory_bytes: of the machine, or of the container.
        free_memory_bytes: of that.
        free_disk_bytes: where the run's folder lies, or the temporary files if that is in a bucket.
        shm_bytes: size of /dev/shm.
        sees_run: whether it sees the file that the driver has put into the run's folder.
        fault: why it cannot write into the run's folder; "" where it can, or does not see it.
        backbone_fault: why the backbone cannot be loaded; "" where nothing is known against it.
        bitsandbytes: its version; "" where it is not installed.
        encoder: the encoder that the config names, or why it cannot be loaded.
        has_encoder: whether it can.
        confinement: what shuts the service's tools in there, or why that is not known.
        confinement_gaps: what does not hold of it (docs/security.md).
    """

    name: str
    resources: Mapping[str, float]
    versions: Mapping[str, str]
    gpus: tuple[str, ...]
    gpu_bytes: int
    free_gpu_bytes: int
    nccl: str
    fabric: str
    has_net_plugin: bool
    memory_bytes: int
    free_memory_bytes: int
    free_disk_bytes: int
    shm_bytes: int
    sees_run: bool
    fault: str
    backbone_fault: str
    bitsandbytes: str
    encoder: str
    has_encoder: bool
    confinement: str
    confinement_gaps: tuple[str, ...]


def look_at_nodes(spec: RunSpec, proof: Location) -> tuple[list[NodeFacts], list[str]]:
    """Look at every node that is alive.

    Args:
        spec: the run config.
        proof: a file in the run's folder that the driver has just written.

    Returns:
        the facts, and of nodes that did not answer their names and why.
    """
    nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    found, missing = ask_nodes(nodes.values(), _look_there, spec, proof, patience_s=LOOK_S)
    facts = [replace(each, resources=dict(nodes[node_id]["Resources"])) for node_id, each in found.items()]
    silent = [f"{nodes[node_id]['NodeManagerHostname']} ({why})" for node_id, why in missing.items()]
    return sorted(facts, key=lambda each: each.name), sorted(silent)


def look(spec: RunSpec, proof: Location) -> NodeFacts:
    """This machine; what Ray hands out on it is for others to add."""
    import torch
    from torch.cuda import nccl

    n_gpus = torch.cuda.device_count()
    encoder, has_encoder = _try_encoder(spec.embed.encoder)
    confinement, gaps = _find_confinement()
    sees_run = storage.exists(proof)
    disk = proof.parent if isinstance(proof, Path) else Path(os.environ.get("TMPDIR", "/tmp"))
    return NodeFacts(
        name=platform.node(),
        resources={},
        versions={"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        gpus=tuple(torch.cuda.get_device_name(index) for index in range(n_gpus)),
        gpu_bytes=min((torch.cuda.get_device_properties(index).total_memory for index in range(n_gpus)), default=0),
        free_gpu_bytes=min(map(_free_of_gpu, range(n_gpus)), default=0),
        nccl=".".join(map(str, nccl.version())) if n_gpus else "",
        fabric=_find_fabric(),
        has_net_plugin=_finds_net_plugin(),
        memory_bytes=get_system_memory(),
        free_memory_bytes=estimate_available_memory(),
        free_disk_bytes=shutil.disk_usage(_existing(disk)).free,
        shm_bytes=shutil.disk_usage(_SHM).total if _SHM.is_dir() else 0,
        sees_run=sees_run,
        fault=_try_writing(proof) if sees_run else "",
        backbone_fault=find_backbone_fault(spec.model.backbone),
        bitsandbytes=_version("bitsandbytes"),
        encoder=encoder,
        has_encoder=has_encoder,
        confinement=confinement,
        confinement_gaps=gaps,
    )


@ray.remote(num_cpus=0, max_calls=1)  # its process would hold a part of each GPU that it has looked at
def _look_there(spec: RunSpec, proof: Location) -> NodeFacts:
    return look(spec, proof)


def may_grow() -> bool:
    """Whether nodes bear the name of a type: an autoscaler's (`ray up`, KubeRay), which may start others.

    Which types there are, Ray tells nobody.
    """
    nodes = GcsClient(address=ray.get_runtime_context().gcs_address).get_all_node_info(timeout=30)
    return any(node.node_type_name for node in nodes.values())


def find_backbone_fault(backbone: str) -> str:
    """Why a worker could not load a backbone on this machine; "" where it could, or would download it.

    What a training makes itself, `tiny` and what is converted from a GGUF file, is not looked for.
    """
    if backbone == "tiny" or is_gguf(backbone):
        return ""
    try:
        load_tokenizer(backbone)
    except InputError as error:
        return str(error)
    if (folder := Path(backbone)).is_dir():
        has_weights = any((folder / name).is_file() for name in WEIGHTS)
        return "" if has_weights else f"backbone folder {backbone!r} holds none of {', '.join(WEIGHTS)}"
    if constants.HF_HUB_OFFLINE and not any(
        isinstance(try_to_load_from_cache(backbone, name), str) for name in WEIGHTS
    ):
        return f"the weights of backbone {backbone!r} are not in the local cache, and HF_HUB_OFFLINE forbids downloads"
    return ""


def _free_of_gpu(index: int) -> int:
    """Bytes; 0 where somebody else holds it for himself."""
    import torch

    try:
        return torch.cuda.mem_get_info(index)[0]
    except RuntimeError:
        return 0


def _find_fabric() -> str:
    cards = sorted(_RDMA_CARDS.iterdir()) if _RDMA_CARDS.is_dir() else []
    return (cards[0] / "device" / "driver").resolve().name if cards else ""


def _finds_net_plugin() -> bool:
    try:
        ctypes.CDLL(_NET_PLUGIN)
    except OSError:
        return False
    return True


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _try_encoder(name: str) -> tuple[str, bool]:
    from model.imagebind.encoders import load_encoder

    try:
        return load_encoder(name).encoder_id, True
    except ValueError as error:
        return str(error), False


def _find_confinement() -> tuple[str, tuple[str, ...]]:
    """What the kernel offers, as a process with one thread finds it; and what does not hold."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", _CONFINEMENT], capture_output=True, text=True, timeout=_CONFINEMENT_S, check=True
        )
        told = json.loads(done.stdout)
        return told["uses"], tuple(told["gaps"])
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or [f"it ended with {error.returncode}"])[-1][:200]
    except (OSError, subprocess.TimeoutExpired, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
    return f"not known: {reason}", ("what shuts tools in could not be found out",)


def _try_writing(proof: Location) -> str:
    """A file beside the proof, gone again."""
    own = proof.parent / f"{proof.name}-{uuid.uuid4().hex[:8]}"
    try:
        storage.write_file(own, "x")
        storage.remove_file(own)
    except OSError as error:
        return str(error)
    return ""
