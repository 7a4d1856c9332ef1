"""The command line: what is printed where, exit codes, and input errors that Ray carried over from workers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayTaskError
from ray.train import WorkerGroupError

import ray_jobs.doctor.job
from data_pipeline.errors import InputError
from ray_jobs.cli import VERBS, main
from ray_jobs.config import RunSpec

REPO = Path(__file__).resolve().parents[2]


def in_worker(cause: Exception) -> RayTaskError:
    """What `ray.get` raises where a task raised `cause`."""
    traceback_text = f'Traceback (most recent call last):\n  File "x.py", line 1\nInputError: {cause}'
    return RayTaskError("task", traceback_text, cause, proctitle="ray::task", pid=1, ip="127.0.0.1")


def replace_job(monkeypatch: pytest.MonkeyPatch, outcome: dict[str, Any] | BaseException) -> list[RunSpec]:
    """Let `doctor` return or raise `outcome`; the specs that it was run with."""
    specs: list[RunSpec] = []

    def run(spec: RunSpec) -> dict[str, Any]:
        specs.append(spec)
        print("a table")
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setattr(ray_jobs.doctor.job, "run", run)
    return specs


def test_the_result_is_the_last_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    specs = replace_job(monkeypatch, {"accuracy": 0.5, "name": "ü"})
    assert main(["doctor", "--config", "demo", "train.epochs=2", "name=mine"]) == 0
    captured = capsys.readouterr()
    assert captured.out == 'a table\n{"accuracy": 0.5, "name": "ü"}\n'
    assert captured.err == ""
    assert (specs[0].name, specs[0].train.epochs, specs[0].model.backbone) == ("mine", 2, "tiny")


def test_overrides_stand_before_and_behind_options(monkeypatch: pytest.MonkeyPatch) -> None:
    specs = replace_job(monkeypatch, {})
    assert main(["doctor", "train.epochs=2", "--config", "demo", "name=mine", "train.epochs=9"]) == 0
    assert main(["doctor", "train.epochs=2", "train.lr=1", "--config=demo"]) == 0
    assert [(spec.train.epochs, spec.name) for spec in specs] == [(9, "mine"), (2, "demo")]


@pytest.mark.parametrize(
    "error",
    [
        InputError("the file x is empty; give another."),
        in_worker(InputError("the file x is empty; give another.")).as_instanceof_cause(),
        in_worker(in_worker(InputError("the file x is empty; give another."))),
        WorkerGroupError("all", {0: RuntimeError("peer gone"), 1: InputError("the file x is empty; give another.")}),
        in_worker(InputError("the file x is empty; give another.\nFailed after 1/1 attempts. To change retries ...")),
    ],
    ids=["plain", "dual", "nested", "train worker", "Ray Data's advice"],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replace_job(monkeypatch, error)
    assert main(["doctor"]) == 2
    captured = capsys.readouterr()
    assert captured.err == "error: the file x is empty; give another.\n"
    assert captured.out == "a table\n", "no JSON line where there is no result"


def test_a_failure_is_shown_whole_and_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replace_job(monkeypatch, ZeroDivisionError("a bug"))
    assert main(["doctor"]) == 1
    assert "Traceback" in (shown := capsys.readouterr().err)
    assert "ZeroDivisionError: a bug" in shown
    replace_job(monkeypatch, OSError(28, "No space left on device", "/runs/x"))
    assert main(["doctor"]) == 2
    assert capsys.readouterr().err == (
        "error: /runs/x: no space left on device; make room there, or set runs_dir to another place.\n"
    )
    replace_job(monkeypatch, KeyboardInterrupt())
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["trane"],
        ["train", "--colour"],
        ["train", "name=a", "--config", "demo", "--colour", "name=b"],
        ["train", "--config", "demo", "--config", "llama_7b"],
        ["score"],
        ["score", "--help=x", "a", "b"],
    ],
)
def test_bad_arguments_are_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "usage: python -m ray_jobs" in capsys.readouterr().err


def test_a_bad_config_stops_before_the_job(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    specs = replace_job(monkeypatch, {})
    assert main(["doctor", "train.epoch=3"]) == 2
    assert main(["doctor", "--config", "nowhere"]) == 2
    assert specs == []
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "did you mean 'epochs'?" in lines[0]
    assert "no run config 'nowhere'" in lines[1]


def test_the_module_exits_with_the_code_of_main() -> None:
    command = [sys.executable, "-m", "ray_jobs", "doctor", "train.epoch=3"]
    result = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: the run config has 1 fault(s): unknown key 'train.epoch'")
    assert "Traceback" not in result.stderr


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"\n    {verb}" in shown for verb in VERBS)
