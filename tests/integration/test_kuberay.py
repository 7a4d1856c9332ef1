"""deploy/: KubeRay's files against its definitions, Ray Serve's schema and our configs; nothing is started."""

from __future__ import annotations

import copy
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from ray.serve.schema import ServeDeploySchema

from ray_jobs.cli import parse_arguments
from ray_jobs.config import load_run_spec
from serve.config import ServeArgs

REPO = Path(__file__).resolve().parents[2]
FOLDER = REPO / "deploy" / "kuberay"
DEFINITIONS = REPO.parent / "shared" / "kuberay"
KINDS = {"RayCluster": "rayclusters", "RayJob": "rayjobs", "RayService": "rayservices"}
QUEUE = "kueue.x-k8s.io/queue-name"
FILES = ("raycluster.yaml", "train.yaml", "sweep.yaml", "serve.yaml")


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


def cluster_of(resource: dict[str, Any]) -> dict[str, Any]:
    spec = resource["spec"]
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


def close(schema: Any) -> Any:
    """The same schema in which a key that it does not know is an error, as in strict validation."""
    if isinstance(schema, list):
        return [close(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: close(value) for key, value in schema.items()}
    if closed.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    is_open = closed.get("x-kubernetes-preserve-unknown-fields") or not isinstance(schema.get("properties"), dict)
    if closed.get("type") == "object" and not is_open:
        closed.setdefault("additionalProperties", False)
    return closed


@pytest.fixture(scope="module")
def schemas() -> dict[str, Any]:
    if not DEFINITIONS.is_dir():
        pytest.skip("KubeRay's resource definitions are not beside the project")
    found = {}
    for kind, name in KINDS.items():
        definition = yaml.safe_load((DEFINITIONS / f"ray.io_{name}.yaml").read_text(encoding="utf-8"))
        (version,) = [version for version in definition["spec"]["versions"] if version["name"] == "v1"]
        schema = close(version["schema"]["openAPIV3Schema"])
        schema["properties"]["metadata"] = {"type": "object"}
        found[kind] = schema
    return found


def faults(schemas: dict[str, Any], resource: dict[str, Any]) -> list[str]:
    validator = Draft202012Validator(schemas[resource["kind"]])
    return [f"{'.'.join(map(str, e.absolute_path))}: {e.message}" for e in validator.iter_errors(resource)]


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_what_kuberay_takes(schemas: dict[str, Any], name: str) -> None:
    resource = load(name)
    assert resource["apiVersion"] == "ray.io/v1"
    assert faults(schemas, resource) == []


def test_planted_faults_are_caught(schemas: dict[str, Any]) -> None:
    misspelt, wrong, missing = (copy.deepcopy(load("train.yaml")) for _ in range(3))
    misspelt["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplica"] = 3
    wrong["spec"]["rayClusterSpec"]["authOptions"]["mode"] = "tokens"
    del missing["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]
    deep = copy.deepcopy(load("serve.yaml"))
    head = deep["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    head["volumeMount"] = head.pop("volumeMounts")
    for resource, word in ((misspelt, "maxReplica"), (wrong, "tokens"), (missing, "template"), (deep, "volumeMount")):
        assert any(word in fault for fault in faults(schemas, resource)), word


@pytest.mark.parametrize("name", FILES)
def test_clusters_are_closed_scale_and_run_nothing_on_the_head(name: str) -> None:
    cluster = cluster_of(load(name))
    assert cluster["authOptions"]["mode"] == "token"
    scales = cluster.get("enableInTreeAutoscaling", False)
    is_queued = QUEUE in load(name)["metadata"].get("labels", {})
    assert scales != is_queued, "Kueue refuses what scales by itself, and takes what has a size"
    assert scales == (name in ("raycluster.yaml", "serve.yaml"))
    assert not scales or cluster["autoscalerOptions"]["version"] == "v2"
    assert scales == ("gcsFaultToleranceOptions" in cluster), "what stays outlives its head"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    (locked,) = re.findall(r"^ray==(\S+)$", (REPO / "requirements.lock").read_text(), re.MULTILINE)
    assert cluster["rayVersion"] == locked
    for group in cluster["workerGroupSpecs"]:
        if scales:
            assert 0 <= group.get("minReplicas", 0) < group["maxReplicas"]
        else:
            assert group["minReplicas"] == group["replicas"] == group["maxReplicas"] >= 1
        (container,) = group["template"]["spec"]["containers"]
        resources = container["resources"]
        assert resources["requests"] == resources["limits"], "Ray hands out what the pod may use"
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert {"shared", "shm"} <= mounted <= {volume["name"] for volume in group["template"]["spec"]["volumes"]}
        has_gpu = "nvidia.com/gpu" in resources["limits"]
        assert container["image"].endswith(":cuda" if has_gpu else ":cpu")


@pytest.mark.parametrize("name", ["train.yaml", "sweep.yaml"])
def test_a_jobs_command_is_ours_and_its_cluster_can_run_it(name: str) -> None:
    job = load(name)["spec"]
    assert job["submissionMode"] == "SidecarMode"
    assert job["backoffLimit"] > 0
    assert job["shutdownAfterJobFinishes"]
    python, dash_m, module, *arguments = shlex.split(job["entrypoint"])
    assert (python, dash_m, module) == ("python", "-m", "ray_jobs")
    args = parse_arguments(arguments)
    spec = load_run_spec(args.config, args.overrides)
    (gpu_group,) = [g for g in job["rayClusterSpec"]["workerGroupSpecs"] if g["groupName"] == "gpu"]
    limits = gpu_group["template"]["spec"]["containers"][0]["resources"]["limits"]
    gpus = int(limits["nvidia.com/gpu"]) * gpu_group["replicas"]
    at_a_time = spec.tune.max_concurrent or 1 if args.verb == "tune" else 1
    assert spec.train.use_gpu
    assert spec.train.max_workers * at_a_time <= gpus
    assert str(spec.runs_dir).startswith("/mnt/toolmm")
    # in that mode the command's container is one of the head's pod
    (label,) = job["rayClusterSpec"]["headGroupSpec"]["template"]["metadata"]["labels"].items()
    text = (FOLDER / name).read_text(encoding="utf-8")
    assert f"kubectl logs -f -l {'='.join(label)} -c ray-job-submitter" in text


def test_the_tracking_server_starts_and_answers_to_the_name_that_jobs_call_it_by() -> None:
    from mlflow.cli import server

    (volume, service, deployment) = yaml.safe_load_all((FOLDER / "mlflow.yaml").read_text(encoding="utf-8"))
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    options = server.make_context("server", container["command"][2:]).params
    assert options["backend_store_uri"].startswith("sqlite:////mlflow/")
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == volume["metadata"]["name"]
    assert service["spec"]["selector"] == deployment["spec"]["template"]["metadata"]["labels"]
    for name in ("train.yaml", "sweep.yaml"):
        args = parse_arguments(shlex.split(load(name)["spec"]["entrypoint"])[3:])
        host = load_run_spec(args.config, args.overrides).tracking_uri.removeprefix("http://")
        assert host in options["allowed_hosts"].split(",")


def test_what_prometheus_reads_and_where_data_lie() -> None:
    monitor, storage = load("podmonitor.yaml"), load("storage.yaml")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    for name in FILES:
        cluster = cluster_of(load(name))
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            claims = [
                each.get("persistentVolumeClaim", {}).get("claimName") for each in group["template"]["spec"]["volumes"]
            ]
            assert storage["metadata"]["name"] in claims
    assert storage["spec"]["accessModes"] == ["ReadWriteMany"]
    assert endpoint["port"] == "metrics", "as KubeRay calls it in every pod"
    from ray.dashboard.modules.metrics import metrics_head

    dashboards = re.findall(r"\w+_grafana_dashboard\.json", (FOLDER / "podmonitor.yaml").read_text(encoding="utf-8"))
    known = Path(metrics_head.__file__).read_text(encoding="utf-8")
    assert len(dashboards) == 5
    assert [name for name in dashboards if name not in known] == []


def test_the_service_is_one_that_serve_deploys() -> None:
    service = load("serve.yaml")["spec"]
    deployed = ServeDeploySchema.model_validate(yaml.safe_load(service["serveConfigV2"]))
    (application,) = deployed.applications
    args = ServeArgs.parse(application.args)
    assert args.max_replicas > args.min_replicas
    assert args.num_gpus > 0
    with pytest.raises(ValueError, match="application"):
        ServeDeploySchema.model_validate({"application": []})
    assert service["upgradeStrategy"]["type"] == "NewClusterWithIncrementalUpgrade"
    secrets = [env["valueFrom"]["secretKeyRef"]["name"] for env in _environment(service) if "valueFrom" in env]
    assert set(secrets) == {"toolmm-keys"}


def _environment(service: dict[str, Any]) -> Iterator[dict[str, Any]]:
    cluster = service["rayClusterConfig"]
    for template in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        for container in template["template"]["spec"]["containers"]:
            yield from container.get("env", ())


def test_the_image_holds_the_packages_and_the_lock() -> None:
    lines = (FOLDER / "Dockerfile").read_text(encoding="utf-8")
    copied = set(re.findall(r"^COPY (\S+)", lines, re.MULTILINE))
    assert {"requirements.lock", "data_pipeline", "model", "ray_jobs", "serve", "pyproject.toml"} <= copied
    assert "\nUSER ray\n" in lines
    assert "ARG TORCH_INDEX" in lines


def test_commands_of_the_page_are_those_of_the_programs() -> None:
    """Ours are parsed; of `ray`'s and MLflow's the options are looked up; files that others are given are there."""
    page = (REPO / "deploy" / "README.md").read_text(encoding="utf-8")
    linked = (REPO / "ray_jobs" / "README.md").read_text(encoding="utf-8")
    (section,) = re.findall(r"^## On a cluster$.*?^## ", linked, re.MULTILINE | re.DOTALL)
    commands = [line.strip() for line in (page + section).splitlines() if re.match(r"    \S", line)]
    seen = Counter(program for command in commands for program in check_command(command))
    assert seen["ray_jobs"] >= 6
    assert seen["ray"] >= 8
    assert seen["kubectl"] >= 4


def test_commands_in_comments_are_those_of_the_programs() -> None:
    files = [REPO / "cluster.yaml", REPO / "deploy" / "aws.yaml", *sorted(FOLDER.iterdir())]
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    commands = re.findall(r"^# +((?:aws|docker|kubectl) .*)$", text, re.MULTILINE)
    seen = Counter(program for command in commands for program in check_command(command))
    assert seen["aws"] >= 3
    assert seen["docker"] >= 2
    assert seen["kubectl"] >= 2


def check_command(command: str) -> list[str]:
    """The programs whose names and options were held against what there is."""
    words = shlex.split(re.sub(r'"\$\(.*\)"', "x", command), comments=True)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    if not words or words[0] == "export":
        return []
    if words[0] in ("aws", "docker", "kubectl"):
        given = [word for before, word in pairwise(words) if before in ("-f", "--template-file")]
        for name in given:
            assert (REPO / name).exists() or words[1] == "logs", command
        return [words[0]]
    if words[0] in ("ray", "mlflow"):
        check_options(words)
    found = [words[0]]
    if "-m" in words and words[words.index("-m") + 1] == "ray_jobs" and words[-1] != "...":
        args = parse_arguments(words[words.index("-m") + 2 :])
        load_run_spec(args.config, args.overrides)
        found.append("ray_jobs")
    return found


def check_options(words: list[str]) -> None:
    from click import Group
    from mlflow.cli import cli as mlflow_cli
    from ray.scripts.scripts import cli as ray_cli

    group: Any = {"ray": ray_cli, "mlflow": mlflow_cli}[words[0]]
    rest = words[1:]
    while isinstance(group, Group):
        group = group.commands[rest.pop(0)]
    known = {option for parameter in group.params for option in (*parameter.opts, *parameter.secondary_opts)}
    own = rest[: rest.index("--")] if "--" in rest else rest
    assert {word.partition("=")[0] for word in own if word.startswith("-")} <= known, words
