"""`bench`: each measurement compares with a peer in the same run and reports the ratio."""

from __future__ import annotations

from typing import Any

from data_pipeline.errors import InputError
from model.llm.gguf import convert_backbone
from ray_jobs.bench import catalogs as bench_catalogs
from ray_jobs.bench import decode as bench_decode
from ray_jobs.bench import embed as bench_embed
from ray_jobs.bench import memory as bench_memory
from ray_jobs.bench import prepare as bench_prepare
from ray_jobs.bench import sweep as bench_sweep
from ray_jobs.bench import teacher as bench_teacher
from ray_jobs.bench import tokens as bench_tokens
from ray_jobs.bench import train as bench_train
from ray_jobs.cluster import connect
from ray_jobs.config import RunSpec

REAL_BACKBONE = "smollm2_135m"
REAL_SIZES, REAL_QUESTIONS = (933,), 8  # of catalogues with that backbone: a question takes seconds


def run(spec: RunSpec) -> dict[str, Any]:
    """Training against Trainer and row by row, its memory; preparing; tokenising; decoding; a teacher; embedding; a
    sweep."""
    results: dict[str, Any] = {
        "train": bench_train.run(),
        "decode": bench_decode.run(),
        "catalogs": bench_catalogs.run(),
    }
    try:
        backbone = convert_backbone(REAL_BACKBONE, spec.backbones_dir)
    except InputError as error:
        print(f"a real backbone is not measured: {error}")
    else:
        results["train_real"] = bench_train.run(bench_train.REAL_TURNS, bench_train.REAL_STEPS_PER_TURN, str(backbone))
        results["catalogs_real"] = bench_catalogs.run(str(backbone), REAL_SIZES, REAL_QUESTIONS)
    results["prepare"] = bench_prepare.run()
    results["tokens"] = bench_tokens.run()
    connect(spec.ray)
    results["teacher"] = bench_teacher.run()
    results["memory"] = bench_memory.run()
    results["embed"] = bench_embed.run()
    results["sweep"] = bench_sweep.run()
    return results
