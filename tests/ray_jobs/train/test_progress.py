"""What a worker tells of a training."""

from __future__ import annotations

import json

import pytest

from ray_jobs.train import progress
from ray_jobs.train.progress import StepProgress
from ray_jobs.worker_output import MARK

JOB = "train-0123456789ab"
METRICS = {
    "train/rows": 64.0,
    "train/data_wait_s": 0.5,
    "train/loss": 2.0,
    "train/token_accuracy": 0.5,
    "train/lr": 1e-3,
}


def messages(capsys: pytest.CaptureFixture[str]) -> list[list[object]]:
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith(f'{MARK}["{JOB}", ') for line in lines)
    return [json.loads(line.removeprefix(MARK))[1:] for line in lines]


def test_steps_are_told_once_a_second_and_the_last_one_always(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: clock[0])
    steps = StepProgress(JOB, end_step=6, first_step=0, is_shown=True)
    assert messages(capsys) == [["progress", 0, 6, "steps", ""]]
    for step, seconds in enumerate((0.5, 1.5, 0.25, 0.25, 2.0, 0.5)):
        clock[0] += seconds
        rates = steps.update(step, METRICS)
        assert rates == {"train/samples_per_s": 64 / seconds, "train/data_wait_frac": 0.5 / seconds}
    notes = [
        "loss=2.0000 token_acc=0.500 samples/s=64.0 lr=1.00e-03 data_wait=50.0%",  # of two steps in two seconds
        "loss=2.0000 token_acc=0.500 samples/s=76.8 lr=1.00e-03 data_wait=60.0%",  # three in 2.5
        "loss=2.0000 token_acc=0.500 samples/s=128.0 lr=1.00e-03 data_wait=100.0%",
    ]
    assert messages(capsys) == [
        ["progress", 2, 6, "steps", notes[0]],
        ["progress", 5, 6, "steps", notes[1]],
        ["progress", 6, 6, "steps", notes[2]],
    ]
    steps.start_validation()
    steps.show_epoch({"epoch": 1, "train/epoch_loss": 2.5, "val/tool_accuracy": 0.75})
    steps.end()
    assert messages(capsys) == [
        ["progress", 6, 6, "steps", "validating"],
        ["line", "epoch=1 mean_loss=2.5000 val_acc=0.750"],
        ["progress", 6, 6, "steps", notes[2]],
        ["end"],
    ]


def test_a_resumed_run_says_where_and_other_ranks_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    StepProgress(JOB, end_step=6, first_step=4, is_shown=True)
    assert messages(capsys) == [["line", "resuming at step 4 of 6"], ["progress", 4, 6, "steps", ""]]
    quiet = StepProgress(JOB, end_step=6, first_step=4, is_shown=False)
    quiet.update(5, METRICS)
    quiet.start_validation()
    quiet.show_epoch({"epoch": 1, "train/epoch_loss": 2.5})
    quiet.end()
    assert messages(capsys) == []
