"""`bench`: each measurement compares with a peer in the same run and reports the ratio."""

from __future__ import annotations

from typing import Any

from ray_jobs import bench_decode, bench_embed
from ray_jobs.cluster import connect
from ray_jobs.config import RunSpec


def run(spec: RunSpec) -> dict[str, Any]:
    """Decoding against sampling and brute force; embedding against the bare encoder."""
    results = {"decode": bench_decode.run()}
    connect(spec.ray)
    results["embed"] = bench_embed.run()
    return results
