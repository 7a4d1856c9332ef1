"""Training checkpoints: round trip, what is kept, kills and full disks while one is written, and what is refused."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import ray_jobs.train.checkpoint
from data_pipeline.errors import InputError
from ray_jobs.train.checkpoint import (
    MOMENTS_FILE,
    PARAMETERS_FILE,
    STATE_FILE,
    CheckpointStore,
    Cursor,
    load_cursor,
    load_metrics,
    load_moments,
    load_parameters,
)

SCORE_KEY = "val/score"


def make_state(size: int = 7) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    parameters = {
        "projector.weight": torch.randn(5, size, generator=generator),
        "b": torch.randn(3, generator=generator),
    }
    moments = {
        f"{moment}/{name}": torch.rand(value.shape, generator=generator) * 1e-9
        for name, value in parameters.items()
        for moment in ("exp_avg", "exp_avg_sq")
    }
    return parameters, moments


def save(store: CheckpointStore, step: int, score: float | None = None) -> Path:
    metrics = {} if score is None else {SCORE_KEY: score}
    return store.save(*make_state(), Cursor(step, step // 10, "abc"), metrics)


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints", SCORE_KEY)


def test_what_is_saved_comes_back_bit_by_bit(store: CheckpointStore) -> None:
    parameters, moments = make_state()
    cursor = Cursor(step=17, epoch=2, mlflow_run_id="abc", epoch_loss_sum=0.1 + 0.2, epoch_steps=3)
    folder = store.save(parameters, moments, cursor, {SCORE_KEY: 0.5, "epoch": 2})
    assert load_cursor(folder) == cursor
    assert load_metrics(folder) == {SCORE_KEY: 0.5, "epoch": 2}
    for found, saved in ((load_parameters(folder), parameters), (load_moments(folder), moments)):
        assert found.keys() == saved.keys()
        assert all(torch.equal(found[name], saved[name]) for name in saved)
    assert {path.name for path in folder.iterdir()} == {PARAMETERS_FILE, MOMENTS_FILE, STATE_FILE}


def test_the_last_and_the_best_are_kept(store: CheckpointStore) -> None:
    assert store.find_last() is store.find_best() is None
    for step, score in ((10, 0.2), (15, None), (20, 0.7), (25, None), (30, 0.7), (40, 0.6), (45, None)):
        save(store, step, score)
    assert [load_cursor(folder).step for folder in store.checkpoints()] == [30, 45], "of equals the later is best"
    last, best = store.find_last(), store.find_best()
    assert last is not None
    assert best is not None
    assert (load_cursor(last).step, load_cursor(best).step) == (45, 30)
    assert sorted(path.name for path in store.folder.iterdir()) == ["step-00000030", "step-00000045"]


def die_while_writing(folder: Path, file_name: str) -> None:
    """SIGKILL this process in the middle of one of the files."""
    save_file = ray_jobs.train.checkpoint.save_file

    def write_half(tensors: dict[str, Tensor], path: Path) -> None:
        save_file(tensors, path)
        if path.name == file_name:
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    ray_jobs.train.checkpoint.save_file = write_half
    save(CheckpointStore(folder, SCORE_KEY), 20, 0.9)


@pytest.mark.parametrize("file_name", [PARAMETERS_FILE, MOMENTS_FILE])
def test_a_kill_while_one_is_written_leaves_the_one_before(store: CheckpointStore, file_name: str) -> None:
    before = save(store, 10, 0.5)
    process = multiprocessing.get_context("fork").Process(target=die_while_writing, args=(store.folder, file_name))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert len(list(store.folder.iterdir())) == 2, "the half-written one is there, under another name"
    assert store.find_last() == store.find_best() == before
    assert all(torch.equal(value, make_state()[0][name]) for name, value in load_parameters(before).items())
    save(store, 20, 0.9)
    assert [path.name for path in store.folder.iterdir()] == ["step-00000020"], "the next one clears the rest away"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if mount is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a small file system can only be mounted by root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_told_and_leaves_the_one_before(small_disk: Path) -> None:
    store = CheckpointStore(small_disk, SCORE_KEY)
    before = save(store, 10, 0.5)
    with pytest.raises(InputError, match=r"disk of .* is full: the checkpoint of step 20 .*step-00000010 is intact"):
        store.save(*make_state(100_000), Cursor(20, 2, "abc"), {})
    assert list(small_disk.iterdir()) == [before]
    assert load_cursor(before).step == 10
    load_moments(before)
    with pytest.raises(InputError, match=r"a checkpoint takes 6\.7 MiB and [01]\.\d MiB are free; free some space"):
        store.check_space(500_000)


def test_an_incomplete_folder_is_refused(store: CheckpointStore) -> None:
    folder = save(store, 10)
    content = (folder / STATE_FILE).read_text()
    for damaged in (content[:10], "{}", '{"cursor": {"step": 1, "stage": 2}}'):
        (folder / STATE_FILE).write_text(damaged)
        with pytest.raises(InputError, match=r"not a complete training checkpoint .*use an earlier one"):
            load_cursor(folder)
    (folder / STATE_FILE).unlink()
    with pytest.raises(InputError, match="not a complete training checkpoint"):
        load_cursor(folder)
    assert store.find_last() is None


def test_a_checkpoint_that_is_too_large_is_a_bug(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frozen weights among the moments would make it so."""
    monkeypatch.setattr(ray_jobs.train.checkpoint, "HEADER_ALLOWANCE_BYTES", 4096)
    parameters, moments = make_state()
    with pytest.raises(RuntimeError, match="trained parameters account for"):
        store.save(parameters, moments | {"frozen": torch.zeros(2000)}, Cursor(1, 0, "abc"), {})
    assert store.find_last() is None
