"""cluster.yaml against Ray's own schema, config preparation and autoscaler arithmetic; nothing reaches a cloud."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from ray_jobs.cluster import tagged
from ray_jobs.config import config_names, load_run_spec
from serve.app import _resources
from serve.config import ServeArgs

REPO = Path(__file__).resolve().parents[2]
HEAD_TYPE = "head"
TOKEN_PATH = "~/.ray/auth_token"


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    """The file as `ray up` sees it: defaults filled in, setup commands merged, checked against the schema."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(yaml.safe_load((REPO / "cluster.yaml").read_text(encoding="utf-8")))
    validate_config(prepared)
    return prepared


def commands_of(cluster: dict[str, Any], node_type: str) -> dict[str, list[str]]:
    """Setup and start commands as the updater of a node of that type runs them."""
    kind = "head" if node_type == HEAD_TYPE else "worker"
    own = cluster["available_node_types"][node_type]
    return {
        "setup": own.get("worker_setup_commands") or cluster[f"{kind}_setup_commands"],
        "start": cluster[f"{kind}_start_ray_commands"],
    }


def place(cluster: dict[str, Any], demands: list[dict[str, float]]) -> dict[str, int]:
    """How many nodes of each type the autoscaler would start for these demands; fails if some can never be met."""
    from ray.autoscaler._private.resource_demand_scheduler import _default_utilization_scorer, get_nodes_for

    scorer = functools.partial(_default_utilization_scorer, node_availability_summary=None)
    nodes, unmet = get_nodes_for(
        cluster["available_node_types"], {HEAD_TYPE: 1}, HEAD_TYPE, cluster["max_workers"], demands, scorer
    )
    assert not unmet, f"no node type can meet {unmet}"
    return dict(nodes)


def test_there_are_nodes_for_every_kind_of_work(cluster: dict[str, Any]) -> None:
    node_types = cluster["available_node_types"]
    assert set(node_types) == {HEAD_TYPE, "cpu_data", "gpu_train", "gpu_serve"}
    assert cluster["head_node_type"] == HEAD_TYPE
    assert node_types[HEAD_TYPE]["resources"] == {"CPU": 0}, "tasks must not run on the head"
    assert cluster["idle_timeout_minutes"] > 0
    for name in set(node_types) - {HEAD_TYPE}:
        assert 0 <= node_types[name]["min_workers"] < node_types[name]["max_workers"], f"{name} does not scale"
        assert node_types[name]["resources"].get("GPU", 0) > 0 or not name.startswith("gpu")
        assert node_types[name]["min_workers"] == 0 or "GPU" not in node_types[name]["resources"], "an idle GPU is paid"
    assert sum(node["max_workers"] for node in node_types.values()) == cluster["max_workers"]


@pytest.mark.parametrize("node_type", [HEAD_TYPE, "cpu_data", "gpu_train", "gpu_serve"])
def test_every_node_installs_the_lock_and_starts_ray_with_the_token(cluster: dict[str, Any], node_type: str) -> None:
    commands = commands_of(cluster, node_type)
    lock = next(remote for remote, local in cluster["file_mounts"].items() if local == "requirements.lock")
    token = next(remote for remote, local in cluster["file_mounts"].items() if local == TOKEN_PATH)
    home = f"/home/{cluster['auth']['ssh_user']}"
    assert token == TOKEN_PATH.replace("~", home), "Ray looks for the token there"
    assert any("pip install" in c and f"--requirement {lock.replace(home, '~')}" in c for c in commands["setup"])
    assert any("/mnt/toolmm" in c and "mount -t nfs4" in c for c in commands["setup"]), "runs_dir must be shared"
    starts = [c for c in commands["start"] if "ray start" in c]
    assert len(starts) == 1
    assert "RAY_AUTH_MODE=token ray start" in starts[0]
    assert ("--head" in starts[0]) == (node_type == HEAD_TYPE)
    for command in commands["setup"] + commands["start"]:
        subprocess.run(["bash", "-n", "-c", command], check=True, timeout=60)


def test_what_is_mounted_is_in_the_project() -> None:
    """The Makefile installs the same lock file."""
    mounts = yaml.safe_load((REPO / "cluster.yaml").read_text(encoding="utf-8"))["file_mounts"]
    for local in mounts.values():
        assert local == TOKEN_PATH or (REPO / local).is_file(), f"{local} is missing"
    assert "--requirement requirements.lock" in (REPO / "Makefile").read_text(encoding="utf-8")


def test_shells_of_a_node_see_the_token_mode_and_the_environment(cluster: dict[str, Any], tmp_path: Path) -> None:
    """The command that writes .bashrc, run twice in an empty home."""
    command = next(c for c in cluster["setup_commands"] if ".bashrc" in c)
    env = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    for _ in range(2):
        subprocess.run(["bash", "-c", command], env=env, check=True, timeout=60)
    show = "source ~/.bashrc && echo $RAY_AUTH_MODE $PATH $HF_HOME"
    shown = subprocess.run(["bash", "-c", show], env=env, check=True, timeout=60, capture_output=True, text=True)
    assert shown.stdout.split() == ["token", f"{tmp_path}/toolmm/.venv/bin:/usr/bin:/bin", "/mnt/toolmm/huggingface"]
    assert (tmp_path / ".bashrc").read_text(encoding="utf-8").count("RAY_AUTH_MODE") == 1


def test_the_autoscaler_starts_the_node_type_that_the_work_is_for(cluster: dict[str, Any]) -> None:
    serving = ServeArgs.model_validate({"bundle": "b", "num_gpus": 0.6, "encoder_num_gpus": 0.4})
    replicas: list[dict[str, float]] = [
        {"CPU": serving.num_cpus, "GPU": serving.num_gpus},
        {"CPU": serving.num_cpus, "GPU": serving.encoder_num_gpus},
    ]
    assert place(cluster, [{"CPU": 1}] * 32) == {"cpu_data": 2}
    assert place(cluster, [{"CPU": 1, "GPU": 1}] * 16) == {"gpu_train": 2}
    assert place(cluster, replicas) == {"gpu_serve": 1}


@pytest.mark.parametrize(("workers", "nodes"), [(1, 1), (4, 1), (8, 1), (12, 2), (16, 2), (64, 8)])
def test_a_training_lands_on_linked_gpus_of_one_kind(cluster: dict[str, Any], workers: int, nodes: int) -> None:
    worker = {"CPU": 4, "GPU": 1} | tagged("train_gpu", 1)
    assert place(cluster, [worker] * workers) == {"gpu_train": nodes}


def test_serving_embedding_and_evaluation_keep_off_the_training_nodes(cluster: dict[str, Any]) -> None:
    args = ServeArgs.model_validate({"bundle": "b", "num_gpus": 1, "node_resource": "serve_gpu"})
    options = _resources(args, args.num_gpus)
    replica = {"CPU": options["num_cpus"], "GPU": options["num_gpus"], **options["resources"]}
    assert place(cluster, [replica] * 4) == {"gpu_serve": 4}
    assert "resources" not in _resources(args, 0.0)
    actor = {"CPU": 1, "GPU": 0.5} | tagged("serve_gpu", 0.5)
    assert place(cluster, [actor] * 4) == {"gpu_serve": 2}


@pytest.mark.parametrize("name", config_names())
def test_the_cluster_has_room_for_every_run_config(cluster: dict[str, Any], name: str) -> None:
    spec = load_run_spec(name, [])
    train: dict[str, float] = {"CPU": spec.train.cpus_per_worker} | ({"GPU": 1} if spec.train.use_gpu else {})
    embed: dict[str, float] = {"CPU": 1, "GPU": spec.embed.num_gpus}
    evaluate: dict[str, float] = {"CPU": 1, "GPU": spec.evaluate.num_gpus}
    place(cluster, [train] * spec.train.workers + [{"CPU": 1}])  # and a task that reads
    place(cluster, [embed] * spec.embed.num_actors + [{"CPU": 1}])
    place(cluster, [evaluate] * spec.evaluate.num_actors + [{"CPU": 1}])


def test_demands_beyond_the_cluster_are_noticed(cluster: dict[str, Any]) -> None:
    with pytest.raises(AssertionError, match="no node type can meet"):
        place(cluster, [{"CPU": 1, "GPU": 16}])
