"""How long `generate` takes for replies that it has already, and how much memory: no test.

    python tests/measurements/cached_replies.py 10000 100000

For each number of replies a process of its own plans, reads them from a cache that the scripted teacher has filled,
filters, builds dialogues, checks and writes them.
"""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "ray_jobs" / "generate"))

from scripted_teacher import ScriptedTeacher

from data_pipeline.teacher.cache import ReplyCache
from data_pipeline.teacher.client import Teacher
from ray_jobs.config import load_run_spec
from ray_jobs.generate import dialogues
from ray_jobs.generate.asking import CACHE

REQUESTS_A_PICTURE = 1.5  # one in two is asked for talk as well
NOISE_FRAC = 0.12


def fill(folder: Path, n_replies: int) -> list[str]:
    """Write captions and a cache with every reply; the overrides of the run."""
    captions = folder / "captions.jsonl"
    with captions.open("w", encoding="utf-8") as file:
        for number in range(round(n_replies / REQUESTS_A_PICTURE)):
            caption = f"A dog number {number} runs at a lake with {number % 17} boats."
            file.write(json.dumps({"image": f"{number}.png", "caption": caption}) + "\n")
    overrides = [
        f"runs_dir={folder / 'runs'}",
        f"generate.captions={captions}",
        "generate.teacher={url: http://127.0.0.1:9/v1, model: scripted, api_key_env: ''}",
    ]
    spec = load_run_spec(None, overrides)
    teacher = ScriptedTeacher(NOISE_FRAC)
    with ReplyCache(spec.work_dir / CACHE) as cache:
        plan = dialogues.make_plan(spec.generate, spec.seed)
        for request in map(plan.render, plan.ask()):
            message = {"role": "assistant", "content": teacher.answer(request.messages[-1][1])}
            usage = {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            cache.put(request.key("scripted"), json.dumps({"choices": [choice], "usage": usage}))
            teacher.prompts.clear()
            teacher.lines.clear()
    return overrides


def generate(overrides: list[str]) -> None:
    """In a process of its own: its peak of memory is that of this run."""
    spec = load_run_spec(None, overrides)
    assert spec.generate.teacher is not None
    base_mb = read_mb("VmRSS")
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        result = dialogues.run(spec, Teacher(spec.generate.teacher, ReplyCache(spec.work_dir / CACHE)))
    seconds, cpu_s = time.perf_counter() - start_s, time.process_time() - start_cpu_s
    peak_mb = read_mb("VmHWM")
    n_samples = sum(sum(kinds.values()) for kinds in result["samples"].values())
    print(
        f"{result['requests']['from_cache']:>8} replies, {result['requests']['sent']} sent, {n_samples:>8} samples: "
        f"{seconds:6.1f} s, {cpu_s:6.1f} s of CPU; memory {base_mb:.0f} MB before, {peak_mb:.0f} MB at most",
        flush=True,
    )


def read_mb(name: str) -> float:
    """A line of this process's status. `getrusage` would know the peak of the process that started it as well."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1]) / 1024


def main() -> None:
    for n_replies in map(int, sys.argv[1:] or ["10000"]):
        with tempfile.TemporaryDirectory() as folder:
            overrides = fill(Path(folder), n_replies)
            process = multiprocessing.get_context("spawn").Process(target=generate, args=(overrides,))
            process.start()
            process.join()


if __name__ == "__main__":
    main()
