"""Tokenising a corpus on one CPU and on two, and how long a training takes to its first step with and without it.

The corpus has text questions alone (`ray_jobs.bench.prepare`). Tokenising is what `train` does, by Ray Data into
shards, under a Ray of so many CPUs, in a process of its own. The trainings are runs of the verb that end after one
step: the second one finds the first one's tokens.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ray

from data_pipeline.batches.encoding import longest_answer
from data_pipeline.batches.token_shards import TokenForm, tokenize_shards
from data_pipeline.corpus.files import Corpus
from data_pipeline.records.prompts import render_prompt, render_target
from model.llm.backbone import load_tokenizer
from model.tiny.backbone import build_tiny_backbone
from ray_jobs.bench.prepare import N_TOOLS, write_source
from ray_jobs.cluster import worker_env

ROWS = 60_000  # some 14 CPU seconds of work: Ray Data's own start, a second or more, is no part of it that CPUs share
CPUS = (1, 2)
_WARM_UP_S = 2.0


def run(rows: int = ROWS) -> dict[str, Any]:
    """Measure, print two lines, and return the numbers.

    Args:
        rows: of the corpus.

    Returns:
        questions_per_s by CPUs, and the second over the first; start_s of a training to the end of its first step,
        without and with tokens there.
    """
    with tempfile.TemporaryDirectory(prefix="bench_tokens_") as name:
        folder = Path(name)
        (folder / "catalog.txt").write_text("".join(f"tool/{n}\n" for n in range(N_TOOLS)), encoding="utf-8")
        write_source(folder / "records.jsonl", rows)
        backbone = build_backbone(folder)
        place = [f"runs_dir={folder}", "name=run", "prepare.source=jsonl", f"prepare.path={folder / 'records.jsonl'}"]
        run_module("ray_jobs", "prepare", *place)
        rates = {}
        for cpus in CPUS:
            found = json.loads(run_module(__spec__.name, str(cpus), str(folder), str(backbone)).splitlines()[-1])
            rates[cpus] = found["questions"] / found["seconds"]
        once = [f"model.backbone={backbone}", "train.max_steps=1", "train.validation_questions=0"]
        starts = []
        for lr in (1e-3, 1e-4):  # another training of the same corpus
            start = time.perf_counter()
            run_module("ray_jobs", "train", *place, *once, f"train.lr={lr}")
            starts.append(time.perf_counter() - start)
    one, two = rates.values()
    print(
        f"tokenising {rows} text questions: {one:.0f} a second on one CPU, {two:.0f} on two, {two / one:.2f} times; a "
        f"training of one step takes {starts[0]:.1f} s, with the tokens there {starts[1]:.1f} s"
    )
    return {"questions_per_s": rates, "two_over_one": two / one, "start_s": starts}


def measure_tokenizing(folder: Path, backbone: str, cpus: int) -> dict[str, float]:
    """Questions of a corpus, and the seconds that the Ray that is connected takes to tokenise them.

    Args:
        folder: of the runs; the corpus is that of `run`, the tokens go to a folder beside it.
        backbone: whose tokenizer it is.
        cpus: that Ray has; so many of its workers are started before the clock is.
    """

    def warm_up() -> None:
        importlib.import_module(tokenize_shards.__module__)  # as a worker does first
        time.sleep(_WARM_UP_S)  # so that each of them takes one

    ray.get([ray.remote(warm_up).options(num_cpus=1).remote() for _ in range(cpus)])
    corpus, tokenizer = Corpus.open(folder / "run" / "corpus"), load_tokenizer(backbone)
    tool_ids = corpus.catalog.selection_tool_ids
    form = TokenForm(tokenizer, 512, longest_answer(tokenizer, tool_ids), 2048, tool_ids)
    start = time.perf_counter()
    shards = tokenize_shards(folder / f"tokens{cpus}", corpus.shard_rows("train"), corpus.data_hash, form)
    return {"questions": shards.n_questions, "seconds": time.perf_counter() - start}


def build_backbone(folder: Path) -> Path:
    """A tiny one, whose tokenizer has learnt the first questions."""
    with (folder / "records.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for _, line in zip(range(2000), file, strict=False)]
    texts = ["".join(filter(None, render_prompt(row["instruction"], False))) for row in rows]
    texts += [render_target(tool) for row in rows for tool in row["tools"]]
    return build_tiny_backbone(folder / "backbone", texts, hidden_size=64, n_layers=2, intermediate_size=128)


def run_module(module: str, *arguments: str) -> str:
    """Run a module in a process of its own; what it printed.

    Raises:
        RuntimeError: it failed.
    """
    env = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-m", module, *arguments], env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join([module, *arguments])} failed:\n{done.stderr[-2000:]}")
    return done.stdout


if __name__ == "__main__":
    ray.init(
        address="local",
        num_cpus=int(sys.argv[1]),
        include_dashboard=False,
        logging_level=logging.ERROR,
        runtime_env={"env_vars": worker_env()},
    )
    print(json.dumps(measure_tokenizing(Path(sys.argv[2]), sys.argv[3], int(sys.argv[1]))))
