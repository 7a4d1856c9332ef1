"""The memory benchmark reads peaks that rise with what is allocated and can be set back."""

from __future__ import annotations

import numpy as np
import pytest

from ray_jobs import bench_memory
from ray_jobs.bench_memory import take_peak_mib


def test_a_peak_is_read_once() -> None:
    take_peak_mib()
    before = take_peak_mib()
    block = np.ones(64 * 2**20 // 8)  # 64 MiB
    del block
    assert take_peak_mib() == pytest.approx(before + 64, abs=8)
    assert take_peak_mib() == pytest.approx(before, abs=8), "what was given back is not counted again"


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_worker_needs_no_more_for_later_epochs_or_a_larger_corpus(capsys: pytest.CaptureFixture[str]) -> None:
    results = bench_memory.run(epochs=2, times=4)
    assert results["epochs_over_first"] <= 1.05
    assert results["large_over_small"] <= 1.10
    assert "4 times the corpus" in capsys.readouterr().out
