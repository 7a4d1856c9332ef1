"""From `ray job submit` to a training's first step, stage by stage, without its tokens and with them: no test.

    PYTHONPATH=.:tests/integration python tests/measurements/submit_to_step.py

A head of its own on this machine, a training of one worker and one step over text questions and a tiny backbone,
submitted three times: on the new head without tokens; with another learning rate, so that the tokens are found; and
again with others. The job is `python -m ray_jobs train` but for notes of the time between its stages.
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from submit_head import TOKEN, Head, start_head

from ray_jobs.bench.prepare import write_source
from ray_jobs.bench.tokens import build_backbone, run_module

ROWS = 30_000
SUBMISSIONS = (("cold, no tokens", 1e-3), ("tokens found", 1e-4), ("tokens found, again", 1e-5))
MARKED = """
import json, sys, time
notes = sys.argv.pop(1)

def note(stage):
    with open(notes, "a") as file:
        file.write(json.dumps([stage, time.time()]) + "\\n")

def noting(call, before=None, after=None):
    def noted(*args, **kwargs):
        if before:
            note(before)
        result = call(*args, **kwargs)
        if after:
            note(after)
        return result
    return noted

note("the driver's process starts")
from ray_jobs.chatter import silence_libraries
silence_libraries()
from ray_jobs.cli import main
from ray_jobs.train import inputs, job

def train_on_worker(config):
    import gc
    note("worker: its process is there")
    gc.disable()
    from ray_jobs.train import loop, partitioned, zero
    gc.freeze()
    gc.enable()
    note("worker: imports")
    partitioned.build_model = noting(partitioned.build_model, after="worker: the model")
    zero.start_engine = noting(zero.start_engine, after="worker: DeepSpeed")
    stream = loop.stream_micro_steps
    def noted_stream(*args, **kwargs):
        packs = stream(*args, **kwargs)
        first = next(packs)
        note("worker: the first pack")
        yield first
        yield from packs
    loop.stream_micro_steps = noted_stream
    loop.StepProgress.update = noting(loop.StepProgress.update, before="worker: the first step")
    loop_per_worker(config)

loop_per_worker, job.train_loop_per_worker = job.train_loop_per_worker, train_on_worker
job.connect = noting(job.connect, before="driver: imports", after="driver: Ray is there")
inputs.tokenize_shards = noting(inputs.tokenize_shards, before="driver: vectors, tokenizer", after="driver: tokens")
job.open_run = noting(job.open_run, before="driver: plan, validation set", after="driver: MLflow's run")
job._fit = noting(job._fit, before="driver: the job's records")
status = main()
note("the job's end")
sys.exit(status)
"""


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="submit_to_step_") as name:
        folder = Path(name)
        overrides = write_inputs(folder)
        with start_head(folder, {}) as head:
            measured = [measure(head, folder / f"{lr}.jsonl", [*overrides, f"train.lr={lr}"]) for _, lr in SUBMISSIONS]
    print(f"{'s':<34}" + "".join(f"{label:>22}" for label, _ in SUBMISSIONS))
    for stage in measured[0]:
        print(f"{stage:<34}" + "".join(f"{each[stage]:>22.2f}" for each in measured))
    print(f"{'to the first step':<34}" + "".join(f"{sum(list(each.values())[:-1]):>22.2f}" for each in measured))


def write_inputs(folder: Path) -> list[str]:
    """A corpus and a backbone; the overrides of a training with them."""
    (folder / "catalog.txt").write_text("".join(f"tool/{n}\n" for n in range(400)), encoding="utf-8")
    write_source(folder / "records.jsonl", ROWS)
    backbone = build_backbone(folder)
    place = [f"runs_dir={folder}", "name=run", "prepare.source=jsonl", f"prepare.path={folder / 'records.jsonl'}"]
    run_module("ray_jobs", "prepare", *place)
    return [*place, f"model.backbone={backbone}", "train.max_steps=1", "train.validation_questions=0"]


def measure(head: Head, notes: Path, overrides: list[str]) -> dict[str, float]:
    """Submit, wait for the end, and return the seconds of each stage."""
    start = time.time()
    done = head.submit(["python", "-c", MARKED, str(notes), "train", *overrides])
    if done.returncode:
        sys.exit(done.stdout[-4000:] + done.stderr[-2000:])
    request = urllib.request.Request(f"{head.address}/api/jobs/", headers={"Authorization": f"Bearer {TOKEN}"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        accepted = max(job["start_time"] for job in json.load(answer) if job["start_time"]) / 1000
    noted = [("submitted", start), ("uploaded and accepted", accepted)]
    noted += [tuple(json.loads(line)) for line in notes.read_text(encoding="utf-8").splitlines()]
    return {stage: end - begin for (_, begin), (stage, end) in itertools.pairwise(noted)}


if __name__ == "__main__":
    main()
