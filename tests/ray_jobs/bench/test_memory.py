"""The memory benchmark reads peaks that rise with what is allocated and can be set back."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from ray_jobs.bench.memory import take_peak_mib

# In a process of its own: what other threads of a long test session give back would lower the peaks.
SCRIPT = f"""
import json
import numpy as np
from {take_peak_mib.__module__} import take_peak_mib

take_peak_mib()
before = take_peak_mib()
block = np.ones(64 * 2**20 // 8)  # 64 MiB
del block
print(json.dumps([before, take_peak_mib(), take_peak_mib()]))
"""


def test_a_peak_is_read_once() -> None:
    printed = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout
    before, with_block, after = json.loads(printed)
    assert with_block == pytest.approx(before + 64, abs=8)
    assert after == pytest.approx(before, abs=8), "what was given back is not counted again"
