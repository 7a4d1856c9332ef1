"""`bench`: each measurement compares with a peer in the same run and reports the ratio."""

from __future__ import annotations

from typing import Any

from ray_jobs.bench import decode as bench_decode
from ray_jobs.bench import embed as bench_embed
from ray_jobs.bench import memory as bench_memory
from ray_jobs.bench import sweep as bench_sweep
from ray_jobs.bench import train as bench_train
from ray_jobs.cluster import connect
from ray_jobs.config import RunSpec


def run(spec: RunSpec) -> dict[str, Any]:
    """Training against Trainer and our row-by-row mode, and its memory; decoding; embedding; ASHA against the grid."""
    results = {"train": bench_train.run(), "decode": bench_decode.run()}
    connect(spec.ray)
    results["memory"] = bench_memory.run()
    results["embed"] = bench_embed.run()
    results["sweep"] = bench_sweep.run()
    return results
