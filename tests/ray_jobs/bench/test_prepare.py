"""The benchmark of `prepare` reads a command's peak, and its source is the same each time and holds repetitions."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from data_pipeline.records.text import words_key
from ray_jobs.bench.prepare import _measure, write_source


def test_a_commands_peak_is_read_and_a_failure_is_no_measurement() -> None:
    small, large = (
        _measure([sys.executable, "-c", f"import time; block = b'x' * ({mib} << 20); time.sleep(0.5)"])["driver_mib"]
        for mib in (1, 65)
    )
    assert large - small == pytest.approx(64, abs=4)
    with pytest.raises(RuntimeError, match="no such thing"):
        _measure([sys.executable, "-c", "raise SystemExit('no such thing')"])


def test_the_source_is_the_same_each_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_source(tmp_path / name, 1000)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    rows = [json.loads(line) for line in (tmp_path / "a").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 1000
    assert all(rows[0].keys() == row.keys() and row["tools"] for row in rows)
    assert 920 < len({words_key(row["instruction"]) for row in rows}) < 980
