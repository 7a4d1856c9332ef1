"""What a newcomer reads: the demo's output in a pipe, and the error of a worker; tests/ray_jobs/own has a terminal.

Each command in a process and with a Ray of its own, as a user starts it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from ray_jobs.config import load_run_spec
from ray_jobs.demo import STAGES
from ray_jobs.train.job import TrainSummary

pytestmark = [pytest.mark.ray, pytest.mark.slow]

REPO = Path(__file__).resolve().parents[2]
NOISE = re.compile(r"\(.*pid=\d+|\x1b\[|WARNING|raylet|\[E |E0000| E \d+ \d+\] |toolmm-tells")
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")


def build_command(folder: Path, verb: str, *overrides: str) -> list[str]:
    """The demo's config at its smallest: one medium of a kind, a few steps."""
    size = (f"runs_dir={folder}", "prepare.size=test", "train.epochs=1", "train.max_failures=0")
    return [sys.executable, "-m", "ray_jobs", verb, "--config", "demo", *size, *overrides]


def clean_env(**more: str) -> dict[str, str]:
    """Without what the test suite sets for its own Ray."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | more


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("demo")
    command = build_command(folder, "demo")
    result = subprocess.run(command, cwd=REPO, env=clean_env(), capture_output=True, text=True, timeout=550)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return folder, result


def test_a_pipe_gets_nothing_that_need_not_be_read(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    _, result = demo
    assert [line for line in (result.stdout + result.stderr).splitlines() if NOISE.search(line)] == []
    assert not CONTROL.search(result.stdout)


def test_a_pipe_gets_each_stage_its_progress_and_json_at_the_end(
    demo: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, result = demo
    lines = result.stdout.splitlines()
    headings = [line.split()[1] for line in lines if line.startswith("=== ")]
    assert headings == [*(name for name, _ in STAGES), "serve", "summary"]
    for line in (
        r"prepare +473/473 records, 100 %, took \d:\d\d",
        r"embed +167/167 media, 100 %, took \d:\d\d",
        r"epoch=1 mean_loss=\d\.\d{4} val_acc=\d\.\d{3} .*",
        r"train +5/5 steps, 100 %, took \d:\d\d; loss=\d.* token_acc=.*",
        r"evaluate +214/214 questions, 100 %, took \d:\d\d",
    ):
        assert [found for found in lines if re.fullmatch(line, found)], line
    outcome = json.loads(lines[-1])
    assert outcome["questions_answered"] == 6
    assert Path(outcome["bundle"]).is_relative_to(folder)


def test_a_divergence_ends_at_once_and_says_what_to_change(
    demo: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    """It would repeat bit for bit: no restart, though three are allowed; what was trained before stays as it is."""
    folder, _ = demo
    spec = load_run_spec("demo", [f"runs_dir={folder}"])
    summary = TrainSummary.load(spec.run_dir)
    checkpoints = Path(summary.last_checkpoint).parent
    before = sorted(checkpoints.rglob("*"))
    command = build_command(folder, "train", "train.lr=1e30", "train.warmup_steps=0", "train.max_failures=3")
    result = subprocess.run(command, cwd=REPO, env=clean_env(), capture_output=True, text=True, timeout=300)
    said = result.stdout + result.stderr
    assert result.returncode == 2, said
    (fault,) = re.findall(r"^error: .*", result.stderr, re.MULTILINE)
    assert re.fullmatch(
        r"error: the (loss|grad_norm) of step (\d) is (nan|inf): the training has diverged, at a learning rate of .*; "
        r"lower train\.lr=1e\+30 or train\.max_grad_norm=1, or raise train\.warmup_steps=0\.",
        fault,
    ), fault
    assert "[deepspeed] OVERFLOW! Skipping step." in said, "DeepSpeed's own, in the worker"
    assert "Traceback" not in said
    assert "\x1b[" not in said
    assert not [line for line in result.stdout.splitlines() if line.startswith(("{", "train     5/5"))]
    client = MlflowClient(spec.tracking_uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    (failed,) = client.search_runs(experiments, "attributes.status = 'FAILED'")
    assert failed.data.params["train.lr"] == "1e+30"
    steps = [metric.step for metric in client.get_metric_history(failed.info.run_id, "train/loss")]
    assert steps == list(range(len(steps))), "each step once: nothing was started again"
    assert sorted(checkpoints.rglob("*")) == before
    assert TrainSummary.load(spec.run_dir) == summary
