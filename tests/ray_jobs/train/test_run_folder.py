"""The run's folder: one job at a time, and a node that does not see it is told at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.errors import InputError
from ray_jobs.train.run_folder import check_shared, only_one, shown_to_all

HOLD = """
import sys, time
from pathlib import Path
from ray_jobs.train.run_folder import only_one
with only_one(Path(sys.argv[1]), "train-abc"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_job_that_is_submitted_twice_is_refused_until_the_first_one_ends(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        with (
            pytest.raises(InputError, match=f"process {first.pid} on .* runs this very job"),
            only_one(folder, "train-abc"),
        ):
            raise AssertionError("two at a time")
        with only_one(folder, "train-other"):
            pass
        assert not (folder / ".train-other.running").exists()
    finally:
        first.kill()  # as the power does
        first.wait(10)
    with only_one(folder, "train-abc"):
        pass


def test_a_node_that_does_not_see_the_drivers_file_refuses(tmp_path: Path) -> None:
    proof = tmp_path / "run" / ".shared-1"
    with shown_to_all(proof):
        check_shared(proof)
        with pytest.raises(InputError, match=r"node .* does not see .*elsewhere.* storage that all nodes share"):
            check_shared(tmp_path / "elsewhere" / ".shared-1")
    with pytest.raises(InputError, match="does not see"):
        check_shared(proof)
