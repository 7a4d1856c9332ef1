"""The decoding benchmark runs, and its methods agree."""

from __future__ import annotations

import pytest

from ray_jobs.bench import decode as bench_decode


@pytest.mark.slow
def test_search_is_exact_and_takes_few_passes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """How much faster the search is, is for an idle machine to say, `make bench`."""
    monkeypatch.setattr(bench_decode, "TRAIN_STEPS", 80)
    monkeypatch.setattr(bench_decode, "BATCH_SIZE", 4)
    monkeypatch.setattr(bench_decode, "WIDTHS", (4,))
    results = bench_decode.run()
    assert results["n_tools"] == 933
    assert results["max_difference_to_brute_force"] < 1e-5
    assert results["passes_per_batch"]["best-first, batched"] <= 20
    rates = results["queries_per_s"]
    assert results["speedup_over_generate"] == rates["best-first"] / rates["10 sampled generate() calls"]
    assert "10 sampled generate() calls" in capsys.readouterr().out
