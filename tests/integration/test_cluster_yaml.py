"""cluster.yaml against Ray's own schema, config preparation and autoscaler arithmetic; nothing reaches a cloud."""

from __future__ import annotations

import functools
import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from moto import mock_aws

from ray_jobs.cluster import tagged
from ray_jobs.config import config_names, load_run_spec
from serve.app import _resources
from serve.config import ServeArgs

REPO = Path(__file__).resolve().parents[2]
HEAD_TYPE = "head"
BUCKET = "toolmm-000000000000"  # of an account's number
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
    show = "source ~/.bashrc && echo $RAY_AUTH_MODE $PATH $TOOLMM_IMAGEBIND_CHECKPOINT"
    shown = subprocess.run(["bash", "-c", show], env=env, check=True, timeout=60, capture_output=True, text=True)
    assert shown.stdout.split() == [
        "token",
        f"{tmp_path}/toolmm/.venv/bin:/usr/bin:/bin",
        f"{tmp_path}/imagebind_huge.pth",
    ]
    assert (tmp_path / ".bashrc").read_text(encoding="utf-8").count("RAY_AUTH_MODE") == 1


def test_mlflows_server_runs_on_the_head_and_jobs_know_of_it(cluster: dict[str, Any]) -> None:
    from mlflow.cli import server

    (start,) = [c for c in commands_of(cluster, HEAD_TYPE)["start"] if "mlflow server" in c]
    words = shlex.split(start.partition("mlflow server ")[2].partition(" >")[0])
    options = server.make_context("server", words).params
    assert options["backend_store_uri"].startswith("sqlite:////home/"), "on the head's disk"
    assert options["artifacts_destination"].startswith(f"s3://{BUCKET}/")
    (ray_start,) = [c for c in commands_of(cluster, HEAD_TYPE)["start"] if "ray start" in c]
    assert f"MLFLOW_TRACKING_URI=http://$(hostname -I | cut -d' ' -f1):{options['port']} " in ray_start


def test_mlflows_server_is_started_once(cluster: dict[str, Any], tmp_path: Path) -> None:
    """The command that starts it, run before there is a server, and when there is one."""
    (start,) = [c for c in commands_of(cluster, HEAD_TYPE)["start"] if "mlflow server" in c]
    programs, mlflow = tmp_path / "bin", tmp_path / "toolmm/.venv/bin/mlflow"
    (tmp_path / "mlflow").mkdir()
    for program, line in ((programs / "curl", "test -e ~/started"), (mlflow, "echo $1 >> ~/started")):
        program.parent.mkdir(parents=True)
        program.write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
        program.chmod(0o755)
    env = {"HOME": str(tmp_path), "PATH": f"{programs}:/usr/bin:/bin"}
    for _ in range(2):
        subprocess.run(["bash", "-c", f"{start} wait"], env=env, check=True, timeout=60)
    assert (tmp_path / "started").read_text(encoding="utf-8") == "server\n"


def test_a_cloud_starts_the_nodes_as_they_are_meant(
    cluster: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's own code for AWS against a cloud that is made up, in which no more is than the file says."""
    from ray.autoscaler._private.aws import node_provider
    from ray.autoscaler._private.aws.config import bootstrap_aws

    for name, value in {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)  # Ray writes an SSH key into the home
    (tmp_path / ".ssh").mkdir()
    with mock_aws():
        rights = boto3.client("iam")
        for name in declared("AWS::IAM::InstanceProfile", "InstanceProfileName"):
            rights.create_instance_profile(InstanceProfileName=name)
        cloud = boto3.client("ec2", region_name=cluster["provider"]["region"])
        group, subnet = make_group(cloud), find_subnet(cloud, cluster["provider"]["availability_zone"])
        ready = bootstrap_aws(with_network(cluster, group, subnet))
        provider = node_provider.AWSNodeProvider(ready["provider"], ready["cluster_name"])
        asked = spy_on(provider.ec2_fail_fast, "create_instances", monkeypatch)
        for name, node_type in ready["available_node_types"].items():
            provider.create_node(node_type["node_config"], {"ray-user-node-type": name}, 1)
        started = [node for group in cloud.describe_instances()["Reservations"] for node in group["Instances"]]
        volumes = cloud.describe_volumes()["Volumes"]
        groups = {group["GroupName"]: group for group in cloud.describe_security_groups()["SecurityGroups"]}
        assert rights.list_roles()["Roles"] == [], "Ray makes none of its own, which may do more"
    nodes = {tags_of(node)["ray-user-node-type"]: node for node in started}
    assert nodes.keys() == cluster["available_node_types"].keys()
    assert len({node["Placement"]["AvailabilityZone"] for node in started}) == 1
    assert {name for name, node in nodes.items() if node.get("InstanceLifecycle") == "spot"} == {
        "cpu_data",
        "gpu_serve",
    }
    for name, node in nodes.items():
        profile = "toolmm-head" if name == HEAD_TYPE else "toolmm-node"
        assert node["IamInstanceProfile"]["Arn"].endswith(f"/{profile}")
        (interface,) = node["NetworkInterfaces"]
        assert [each["GroupName"] for each in interface["Groups"]] == ["toolmm"]
        assert tags_of(node)["project"] == "toolmm"
    assert cluster["available_node_types"]["gpu_train"]["node_config"]["Placement"]["GroupName"] == "toolmm"
    assert all(volume["Encrypted"] and tags_of(volume)["project"] == "toolmm" for volume in volumes)
    assert groups.keys() == {"default", "toolmm"}, "Ray makes none of its own"
    rules = {rule["IpProtocol"]: rule for rule in groups["toolmm"]["IpPermissions"]}
    assert [each["GroupId"] for each in rules["-1"]["UserIdGroupPairs"]] == [group]
    assert (rules["tcp"]["FromPort"], rules["tcp"]["ToPort"]) == (22, 22)
    assert len(rules) == 2, "nor does Ray open more"
    interfaces = {each["InstanceType"]: each.get("NetworkInterfaces") for each in asked}
    ((efa,),) = [each for each in interfaces.values() if each]
    assert interfaces["p4d.24xlarge"] == [efa]
    assert (efa["InterfaceType"], efa["SubnetId"], efa["Groups"]) == ("efa", subnet, [group])
    assert efa["AssociatePublicIpAddress"], "else the node could install nothing"


def test_what_bypasses_ip_may_pass_among_the_nodes() -> None:
    """EFA takes rules that name the group itself, in and out."""
    for way, peer in (("Ingress", "SourceSecurityGroupId"), ("Egress", "DestinationSecurityGroupId")):
        kind = f"AWS::EC2::SecurityGroup{way}"
        assert declared(kind, "GroupId") == declared(kind, peer) == ["Nodes.GroupId"]
        assert declared(kind, "IpProtocol") == ["-1"]


def make_group(cloud: Any) -> str:
    """The security group of deploy/aws.yaml; its id."""
    kind = "AWS::EC2::SecurityGroup"
    (name,), (words,) = declared(kind, "GroupName"), declared(kind, "GroupDescription")
    group = cloud.create_security_group(GroupName=name, Description=words)["GroupId"]
    (rules,) = declared(kind, "SecurityGroupIngress")
    among = {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group}]}
    for rule in rules:
        cloud.authorize_security_group_ingress(GroupId=group, **rule)
    cloud.authorize_security_group_ingress(GroupId=group, IpPermissions=[among])
    return group


def find_subnet(cloud: Any, zone: str) -> str:
    """The zone's own."""
    found = cloud.describe_subnets(Filters=[{"Name": "availability-zone", "Values": [zone]}])["Subnets"]
    return next(subnet["SubnetId"] for subnet in found if subnet["DefaultForAz"])


def with_network(cluster: dict[str, Any], group: str, subnet: str) -> dict[str, Any]:
    """The file after its user has put in the ids of his account."""
    text = json.dumps(cluster).replace("sg-00000000000000000", group).replace("subnet-00000000000000000", subnet)
    return json.loads(text)


def spy_on(target: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The arguments of the calls of a method that are still to come; it does what it does."""
    calls: list[dict[str, Any]] = []
    method = getattr(target, name)

    def noted(**arguments: Any) -> Any:
        calls.append(arguments)
        return method(**arguments)

    monkeypatch.setattr(target, name, noted)
    return calls


def tags_of(thing: dict[str, Any]) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in thing["Tags"]}


def declared(kind: str, key: str) -> list[Any]:
    """What deploy/aws.yaml says of its resources of a kind."""

    class Loader(yaml.SafeLoader):
        """CloudFormation's tags are read as the text behind them."""

    Loader.add_multi_constructor("!", lambda _loader, _tag, node: node.value)
    template = yaml.load((REPO / "deploy" / "aws.yaml").read_text(encoding="utf-8"), Loader)
    return [each["Properties"][key] for each in template["Resources"].values() if each["Type"] == kind]


def test_the_bucket_is_the_one_that_is_made() -> None:
    assert declared("AWS::S3::Bucket", "BucketName") == ["toolmm-${AWS::AccountId}"]
    text = (REPO / "cluster.yaml").read_text(encoding="utf-8")
    assert set(re.findall(r"s3://([\w-]+)", text)) == {BUCKET}


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
