"""The memory benchmark reads peaks that rise with what is allocated and can be set back."""

from __future__ import annotations

import numpy as np
import pytest

from ray_jobs.bench_memory import take_peak_mib


def test_a_peak_is_read_once() -> None:
    take_peak_mib()
    before = take_peak_mib()
    block = np.ones(64 * 2**20 // 8)  # 64 MiB
    del block
    assert take_peak_mib() == pytest.approx(before + 64, abs=8)
    assert take_peak_mib() == pytest.approx(before, abs=8), "what was given back is not counted again"
