"""`ray job submit --working-dir .` on a head of its own, with token authentication and a bucket, as on a cluster."""

from __future__ import annotations

import io
import json
import re
import shlex
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
from mlflow.tracking import MlflowClient
from PIL import Image

from tests.integration.serve_command import serving
from tests.integration.submit_head import BIN, REPO, TOKEN, Head, request_jobs, start_head

pytestmark = [pytest.mark.ray, pytest.mark.slow]

MAX_UPLOAD_BYTES = 6 * 2**20
TOOLS = {"translator": "translate", "summarizer": "summarize", "poet": "write a poem about"}
PROBE = """
import json, os, sys
import ray
from pathlib import Path
from ray_jobs.cluster import connect
from ray_jobs.config import RayOptions

@ray.remote
def look():
    import torch
    import ray_jobs
    names = ("OMP_NUM_THREADS", "DS_ACCELERATOR", "TQDM_DISABLE", "PYTHONWARNINGS", "PROBE")
    return {
        "python": sys.executable,
        "prefix": sys.prefix,
        "threads": torch.get_num_threads(),
        "ray_jobs": ray_jobs.__file__,
        "env": {name: os.environ.get(name) for name in names},
    }

connect(RayOptions())
files = sorted(path.relative_to(Path.cwd()).as_posix() for path in Path.cwd().rglob("*") if path.is_file())
print(json.dumps({"cwd": os.getcwd(), "files": files, "worker": ray.get(look.remote())}))
"""


@pytest.fixture(scope="module")
def bucket_env(s3_server: str) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@pytest.fixture(scope="module")
def s3(s3_server: str) -> Any:
    """A client of the bucket's server."""
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    return boto3.client("s3", endpoint_url=s3_server, region_name="us-east-1", **keys)


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory, bucket_env: dict[str, str]) -> Iterator[Head]:
    few_processes = {
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # no node goes here
        "RAY_enable_worker_prestart": "0",
        "RAY_prestart_worker_first_driver": "0",
    }
    with start_head(tmp_path_factory.mktemp("home"), bucket_env | few_processes) as head:
        yield head


def find_json(result: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    """The JSON objects that verbs print last, found in the log of their job."""
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-3000:]
    return [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]


@pytest.fixture(scope="module")
def overrides(s3: Any, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A small corpus of questions, some with pictures, and its run, all in the bucket but for the driver's records."""
    local = tmp_path_factory.mktemp("local")
    things = ["letter", "report", "novel", "contract", "recipe", "speech", "menu", "manual", "diary", "song"]
    rows: list[dict[str, Any]] = [
        {"instruction": f"Please {verb} the {thing} of my {whose}.", "tools": [f"acme/{tool}"], "split": split}
        for tool, verb in TOOLS.items()
        for thing in things
        for whose, split in (("aunt", "train"), ("boss", "train"), ("friend", "val"), ("rival", "test"))
    ]
    for row in rows[::10]:
        row["media"] = f"{row['split']}.png"
    bucket = f"toolmm-{uuid.uuid4().hex[:8]}"
    s3.create_bucket(Bucket=bucket)
    for number, name in enumerate({row["media"]: None for row in rows if "media" in row}):
        picture = io.BytesIO()
        Image.new("RGB", (64, 48), (60 * number, 90, 120)).save(picture, "PNG")
        s3.put_object(Bucket=bucket, Key=f"media/{name}", Body=picture.getvalue())
    (local / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (local / "catalog.txt").write_text("".join(f"acme/{name}\n" for name in TOOLS), encoding="utf-8")
    return [
        "name=submitted",
        f"runs_dir=s3://{bucket}/runs",
        "prepare.source=jsonl",
        f"prepare.path={local / 'records.jsonl'}",
        f"prepare.media_root=s3://{bucket}/media",
        "embed.encoder=tiny_imagebind",
        "embed.num_actors=1",
        "model.lora_r=4",
        "train.workers=2",
        "train.epochs=40",
        "train.max_steps=40",
        "train.global_batch_size=16",
        "train.pack_tokens=256",
        "train.checkpoint_every_steps=2",
        "train.validation_questions=6",
    ]


def test_the_job_server_wants_the_token(head: Head) -> None:
    assert request_jobs(head, TOKEN) == 200
    assert request_jobs(head, None) == 401
    assert request_jobs(head, TOKEN[::-1]) in (401, 403)


def test_the_upload_is_small_and_leaves_out_what_no_job_needs(tmp_path: Path) -> None:
    """What Ray packs for `--working-dir .`, measured by its own function."""
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import create_package

    package = tmp_path / "package.zip"
    create_package(str(REPO), package, include_gitignore=True, excludes=get_runtime_env_default_excludes())
    assert 0 < package.stat().st_size < MAX_UPLOAD_BYTES


def test_a_job_gets_the_packages_and_one_thread_per_worker(head: Head) -> None:
    variables = json.dumps({"env_vars": {"PROBE": "1", "TQDM_DISABLE": "0"}})
    (probe,) = find_json(head.submit(["python", "-c", PROBE], "--runtime-env-json", variables))
    files = set(probe["files"])
    assert {"ray_jobs/__main__.py", "ray_jobs/configs/demo.yaml", "serve/serve.yaml", "pyproject.toml"} <= files
    assert {path.split("/")[0] for path in files}.isdisjoint({".venv", ".git", ".ci", "tests", "runs"})
    worker = probe["worker"]
    assert worker["ray_jobs"].startswith(probe["cwd"]), "workers must import what was uploaded"
    assert Path(worker["python"]).parent == BIN
    assert worker["threads"] == 1
    assert worker["env"] == {
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "TQDM_DISABLE": "0",  # what the submission says stands
        "PYTHONWARNINGS": "ignore::FutureWarning,ignore::DeprecationWarning",
        "PROBE": "1",
    }


def test_from_records_to_a_service_with_nothing_shared_but_a_bucket(
    head: Head,
    overrides: list[str],
    s3: Any,
    bucket_env: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs = overrides[1].removeprefix("runs_dir=")

    def one_job(*verbs: str) -> list[str]:
        """One after the other."""
        return ["bash", "-c", " && ".join(shlex.join(["python", "-m", "ray_jobs", verb, *overrides]) for verb in verbs)]

    (stopped,) = head.submit(one_job("prepare", "embed", "train"), "--no-wait").stdout.split("'")[1:2]
    wait_for_checkpoint(head, s3, runs.removeprefix("s3://").removesuffix("/runs"), stopped)
    assert head.ray("job", "stop", stopped).returncode == 0
    prepared, embedded = find_json(head.ray("job", "logs", stopped))
    assert prepared["counts"]["train"]["questions"] == 60
    assert prepared["rejected"] in ({}, [], 0)
    assert prepared["corpus"].startswith(runs)
    assert embedded["encoded"] == 2

    went_on = head.submit(one_job("train", "export"))
    trained, exported = find_json(went_on)
    (resumed,) = map(int, re.findall(r"resuming at step (\d+) of 40", went_on.stdout))
    assert 0 < resumed < 40
    assert trained["metrics"]["step"] <= 40
    assert trained["best_checkpoint"].startswith(runs)
    losses = MlflowClient(head.env["MLFLOW_TRACKING_URI"]).get_metric_history(trained["mlflow_run_id"], "train/loss")
    assert [loss.step for loss in losses] == list(range(40)), "each step once, where the cluster says that MLflow is"

    assert exported["bundle"].startswith(runs)
    for name, value in bucket_env.items():
        monkeypatch.setenv(name, value)
    with serving(exported["bundle"], tmp_path / "artifacts") as service:
        body = {"instruction": "Please translate the letter of my uncle.", "k": 3}
        answer = httpx.post(f"{service.url}/v1/tools/select", json=body, timeout=120).raise_for_status().json()
    assert sum(tool["probability"] for tool in answer["tools"]) <= 1 + 1e-6
    assert {tool["tool_id"] for tool in answer["tools"]} <= {
        "acme/translator",
        "acme/summarizer",
        "acme/poet",
        "unknown",
    }


def wait_for_checkpoint(head: Head, s3: Any, bucket: str, job: str, timeout_s: float = 300) -> None:
    """Until the first one of the job's run lies in the bucket."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        keys = [each["Key"] for each in s3.list_objects_v2(Bucket=bucket, Prefix="runs/").get("Contents", [])]
        if any("/checkpoints/" in key and key.endswith(".safetensors") for key in keys):
            return
        time.sleep(0.2)
    said = head.ray("job", "logs", job).stdout
    pytest.fail(f"no checkpoint after {timeout_s} s; there are {keys}; the job said {said[-6000:]}")
