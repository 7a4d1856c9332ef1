"""Training checkpoints: round trip, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import ray_jobs.checkpoint
from data_pipeline.errors import InputError
from ray_jobs.checkpoint import (
    CURSOR_FILE,
    MOMENTS_FILE,
    PARAMETERS_FILE,
    Cursor,
    load_cursor,
    load_moments,
    load_parameters,
    save_checkpoint,
)

CURSOR = Cursor(step=17, epoch=2, mlflow_run_id="abc")


def make_state() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    parameters = {"projector.weight": torch.randn(5, 7, generator=generator), "b": torch.randn(3, generator=generator)}
    moments = {
        f"{moment}/{name}": torch.rand(value.shape, generator=generator) * 1e-9
        for name, value in parameters.items()
        for moment in ("exp_avg", "exp_avg_sq")
    }
    return parameters, moments


def test_what_is_saved_comes_back_bit_by_bit(tmp_path: Path) -> None:
    parameters, moments = make_state()
    size = save_checkpoint(tmp_path, parameters, moments, CURSOR)
    assert size == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert load_cursor(tmp_path) == CURSOR
    for found, saved in ((load_parameters(tmp_path), parameters), (load_moments(tmp_path), moments)):
        assert found.keys() == saved.keys()
        assert all(torch.equal(found[name], saved[name]) for name in saved)
    assert {path.name for path in tmp_path.iterdir()} == {PARAMETERS_FILE, MOMENTS_FILE, CURSOR_FILE}


def test_an_incomplete_folder_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, *make_state(), CURSOR)
    content = (tmp_path / CURSOR_FILE).read_text()
    for damaged in (content[:10], "{}", "[]", '{"step": 1, "stage": 2}'):
        (tmp_path / CURSOR_FILE).write_text(damaged)
        with pytest.raises(InputError, match=r"not a complete training checkpoint .*use an earlier one"):
            load_cursor(tmp_path)
    (tmp_path / CURSOR_FILE).unlink()
    with pytest.raises(InputError, match="not a complete training checkpoint"):
        load_cursor(tmp_path)


def test_a_save_that_dies_before_the_cursor_is_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(source: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ray_jobs.checkpoint.os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, *make_state(), CURSOR)
    with pytest.raises(InputError, match="not a complete training checkpoint"):
        load_cursor(tmp_path)


def test_a_checkpoint_that_is_too_large_is_a_bug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frozen weights among the moments would make it so."""
    monkeypatch.setattr(ray_jobs.checkpoint, "HEADER_ALLOWANCE_BYTES", 4096)
    parameters, moments = make_state()
    save_checkpoint(tmp_path, parameters, moments, CURSOR)
    with pytest.raises(RuntimeError, match="trained parameters account for"):
        save_checkpoint(tmp_path, parameters, moments | {"frozen": torch.zeros(2000)}, CURSOR)
