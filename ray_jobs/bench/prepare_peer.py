"""What `prepare` does with text questions, done with Hugging Face `datasets`.

    python -m ray_jobs.bench.prepare_peer FILE FOLDER

Questions are compared in the same words, the first of them stands, a hash splits them, and the splits become Parquet.
"""

from __future__ import annotations

import hashlib
import os
import sys
from typing import Any

from data_pipeline.records.text import words_key


def run(file: str, folder: str) -> None:
    """Prepare the questions of `file` into `folder`."""
    import datasets  # optional: nothing else here needs it  # pyright: ignore[reportMissingImports]

    datasets.disable_progress_bars()
    n_processes = os.cpu_count()
    questions = datasets.load_dataset("json", data_files=file, split="train", cache_dir=folder)
    questions = questions.map(_add_key, num_proc=n_processes)
    seen: set[str] = set()

    def is_first(key: str) -> bool:
        is_new = key not in seen
        seen.add(key)
        return is_new

    questions = questions.filter(is_first, input_columns="key")
    for split, first, end in (("train", 0, 76), ("val", 76, 80), ("test", 80, 100)):
        chosen = questions.filter(
            lambda key, first=first, end=end: first <= int(key[:8], 16) % 100 < end,
            input_columns="key",
            num_proc=n_processes,
        )
        chosen.to_parquet(f"{folder}/{split}.parquet")


def _add_key(row: dict[str, Any]) -> dict[str, Any]:
    return {"key": hashlib.sha256(words_key(row["instruction"]).encode()).hexdigest()}


if __name__ == "__main__":
    run(*sys.argv[1:])
