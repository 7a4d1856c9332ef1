"""`prepare` of text questions, and of ten times as many: time, and peak memory of the driver and of its workers.

Each size is a run of the verb in a process of its own. Beside it the same is done with Hugging Face `datasets`, where
that is installed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ray_jobs.bench import prepare_peer

ROWS = 100_000
TIMES = 10  # how much larger the larger corpus is
N_TOOLS = 400
REPEATED = 0.05  # of the questions are asked again, in another spelling
_POLL_S = 0.2
_WORDS = (
    "please",
    "find",
    "show",
    "make",
    "read",
    "the",
    "a",
    "this",
    "my",
    "old",
    "new",
    "photo",
    "song",
    "film",
    "in",
)


def run(rows: int = ROWS, times: int = TIMES) -> dict[str, Any]:
    """Measure, print a table, and return the numbers.

    Args:
        rows: of the smaller source.
        times: size of the larger source over that of the smaller one.

    Returns:
        seconds and peak_mib of driver and worker by size; of both, the larger over the smaller; likewise of `datasets`
        where it is installed.
    """
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="bench_prepare_") as name:
        folder = Path(name)
        (folder / "catalog.txt").write_text("".join(f"tool/{n}\n" for n in range(N_TOOLS)), encoding="utf-8")
        sizes = (rows, rows * times)
        for size in sizes:
            write_source(folder / f"{size}.jsonl", size)
        verb = [sys.executable, "-m", "ray_jobs", "prepare", f"runs_dir={folder}", "prepare.source=jsonl"]
        results["prepare"] = [
            _measure([*verb, f"name=run{size}", f"prepare.path={folder / f'{size}.jsonl'}"]) for size in sizes
        ]
        if importlib.util.find_spec("datasets"):
            peer = [sys.executable, "-m", prepare_peer.__name__]
            results["datasets"] = [
                _measure([*peer, str(folder / f"{size}.jsonl"), str(folder / f"peer{size}")]) for size in sizes
            ]
        else:
            print("Hugging Face datasets is not measured: it is not installed (pip install datasets)")
    print(f"{'':<12}{'rows':>10}{'s':>9}{'rows/s':>9}{'driver, MiB':>13}{'worker, MiB':>13}")
    for label, measured in list(results.items()):
        for size, one in zip(sizes, measured, strict=True):
            print(
                f"{label:<12}{size:>10}{one['seconds']:>9.1f}{size / one['seconds']:>9.0f}"
                f"{one['driver_mib']:>13.1f}{one['worker_mib']:>13.1f}"
            )
        small, large = measured
        ratios = {key: large[key] / small[key] for key in small if small[key]}
        print(f"{label:<12}{f'{times} times':>10}" + "".join(f"  {key} x {ratio:.2f}" for key, ratio in ratios.items()))
        results[f"{label}_large_over_small"] = ratios
    return results


def write_source(path: Path, rows: int) -> None:
    """JSON Lines of text questions, each answered by one to three tools; the same for the same number of rows."""
    chosen = random.Random(rows)
    words = ""
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            is_again = words and chosen.random() < REPEATED
            words = words.swapcase() if is_again else " ".join(chosen.choices(_WORDS, k=14)) + f" {number}"
            tools = sorted({min(N_TOOLS - 1, int(chosen.expovariate(0.02))) for _ in range(1 + number % 3)})
            file.write(json.dumps({"instruction": words, "tools": [f"tool/{tool}" for tool in tools]}) + "\n")


def _measure(command: list[str]) -> dict[str, float]:
    """Run a command; its seconds, and the peak resident memory of its process and of the largest one that works for it.

    Raises:
        RuntimeError: the command failed.
    """
    started_s = time.monotonic()
    env = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=env)
        driver_kib, worker_kib = 0, 0
        while process.poll() is None:
            driver_kib = max(driver_kib, _read_status(process.pid).get("VmHWM", 0))
            workers = [pid for pid in _find_descendants(process.pid) if _is_worker(pid)]
            worker_kib = max([worker_kib, *(_read_status(pid).get("VmHWM", 0) for pid in workers)])
            time.sleep(_POLL_S)
        seconds = time.monotonic() - started_s
        if process.returncode:
            output.seek(0)
            raise RuntimeError(f"{' '.join(command)} failed:\n{output.read().decode()[-2000:]}")
    return {"seconds": seconds, "driver_mib": driver_kib / 1024, "worker_mib": worker_kib / 1024}


def _read_status(pid: int) -> dict[str, int]:
    """The numbers of a process (Linux), sizes in KiB; {} where it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    fields = (line.split() for line in lines)
    return {words[0].rstrip(":"): int(words[1]) for words in fields if len(words) > 1 and words[1].isdecimal()}


def _find_descendants(pid: int) -> list[int]:
    parent = {int(path.name): _read_status(int(path.name)).get("PPid", 0) for path in Path("/proc").glob("[0-9]*")}
    found = [pid]
    for known in found:  # grows meanwhile
        found += [child for child, its_parent in parent.items() if its_parent == known]
    return found[1:]


def _is_worker(pid: int) -> bool:
    """Whether a process runs tasks of Ray, or is one of the peer's; not Ray's own servers."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return False
    return command.startswith("ray::") or prepare_peer.__name__ in command
