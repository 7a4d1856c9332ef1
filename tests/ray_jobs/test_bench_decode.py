"""The decoding benchmark runs, and its methods agree."""

from __future__ import annotations

import pytest

from ray_jobs.bench_decode import run


@pytest.mark.slow
def test_search_is_exact_and_faster_than_what_it_replaces(capsys: pytest.CaptureFixture[str]) -> None:
    results = run()
    assert results["n_tools"] == 933
    assert results["max_difference_to_brute_force"] < 1e-5
    assert results["passes_per_batch"]["best-first, batched"] <= 12
    assert results["speedup_over_generate"] > 2
    assert results["speedup_over_brute_force"] > 10
    assert "10 sampled generate() calls" in capsys.readouterr().out
