"""Serving and training side by side while each thing breaks once: the short form of an hour's script."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "measurements" / "long_run.py"
KILLED = ("kill_predictor", "kill_worker", "kill_encoder", "stop_tracking", "kill_raylet")

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("warm_python")]


def test_nothing_is_lost_while_things_break() -> None:
    """It exits with 1 where an answer or a training's step is lost, or a training ends with other weights."""
    command = [sys.executable, str(SCRIPT), "--minutes", "0", "--pause", "3", "--epochs", "4", "--clients", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["faults"].items() >= dict.fromkeys(KILLED, 1).items(), found["faults_not_made"]
    assert found["faults"].keys() <= {*KILLED, "fill_disk"}  # which only root can mount
    assert found["requests"]["answered"] > 10
    assert found["requests"]["refused"] > 0
    assert found["trainings"]["rounds"] >= 1
