"""Actors that decode: their threads, the order of what they give, and that a killed run goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ray_jobs.config import EvaluateOptions
from ray_jobs.evaluate.actors import TrainedModel, decode_on_actors
from ray_jobs.evaluate.answers import compute_key

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


class ThreadCounter:
    """Says with how many threads it would decode."""

    def __init__(self, job: Any) -> None:
        self._job = job

    def __call__(self, batch: pa.Table) -> pa.Table:
        import torch

        threads = [torch.get_num_threads()] * batch.num_rows
        return pa.table({"position": batch["position"], "threads": threads, "job": [self._job] * batch.num_rows})


def test_an_actor_has_the_threads_of_the_config_whatever_the_environment_says(tmp_path: Path) -> None:
    """The tests' Ray runs under OMP_NUM_THREADS=1, as the Makefile's does."""
    table = pa.table({"position": [3, 1, 0, 2]})
    options = EvaluateOptions(batch_size=2, threads_per_actor=2)
    rows = decode_on_actors(ThreadCounter, "job", table, TrainedModel({}, "", options, tmp_path), "rows")
    assert rows == [{"position": number, "threads": 2, "job": "job"} for number in range(4)]


class Witness:
    """Notes every batch in a folder; its answers depend on the batch. It dies at position 9 while a file says so."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)

    def __call__(self, batch: pa.Table) -> pa.Table:
        positions = batch["position"].to_pylist()
        if 9 in positions and (self._folder / "deadly").exists():
            raise ValueError("killed")
        (self._folder / "-".join(map(str, positions))).touch()
        return pa.table({"position": batch["position"], "answer": [sum(positions) / 7] * len(positions)})


@pytest.mark.slow
def test_a_killed_run_goes_on_and_gives_what_an_undisturbed_one_gives(tmp_path: Path) -> None:
    def run(folder: str) -> list[dict[str, Any]]:
        model = TrainedModel({}, "", EvaluateOptions(batch_size=3), tmp_path / f"{folder} answers")
        return decode_on_actors(Witness, str(tmp_path / folder), table, model, "rows")

    table = pa.table({"position": [*range(0, 14, 2), *range(1, 14, 2)]})
    for folder in ("whole", "cut"):
        (tmp_path / folder).mkdir()
    expected = run("whole")
    assert [row["position"] for row in expected] == list(range(14))
    (tmp_path / "cut" / "deadly").touch()
    with pytest.raises(ValueError, match="killed"):
        run("cut")
    done = {file.name for file in (tmp_path / "cut").iterdir()} - {"deadly"}
    for file in (tmp_path / "cut").iterdir():
        file.unlink()
    assert run("cut") == expected
    asked = {file.name for file in (tmp_path / "cut").iterdir()}
    kept = {file.name for file in (tmp_path / "whole").iterdir()} - asked
    assert kept, "what was answered is not asked again"
    assert kept <= done
    for file in (tmp_path / "cut").iterdir():
        file.unlink()
    assert run("cut") == expected
    assert not any((tmp_path / "cut").iterdir()), "nothing is asked twice"


def test_other_weights_questions_and_settings_have_other_answers(tmp_path: Path) -> None:
    table = pa.table({"position": [0, 1], "prompt": ["a", "b"]})
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"1")
    keys = {compute_key(Witness, "job", str(tmp_path), each) for each in (table, table.slice(1), table.take([1, 0]))}
    assert compute_key(Witness, "job", str(tmp_path), pa.concat_tables([table.slice(0, 1), table.slice(1)])) in keys
    keys |= {
        compute_key(Witness, "other", str(tmp_path), table),
        compute_key(ThreadCounter, "job", str(tmp_path), table),
    }
    weights.write_bytes(b"2")
    keys.add(compute_key(Witness, "job", str(tmp_path), table))
    assert len(keys) == 6
