"""The files of generated dialogues, written part by part: no more of them is in memory than the last part."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from data_pipeline.instruct.instructions import Noise
from data_pipeline.instruct.samples import Sample, count_kinds
from ray_jobs.generate.asking import EXAMPLES, render_lines


class RowFiles:
    """Writes `<split>.json`, for splits that hold anything, and `rejected.jsonl`. Use it as a context manager.

    Args:
        folder: empty, on a disk.

    Attributes:
        samples, noise: the first ones, as examples; a sample with its row.
        kinds: split -> kind -> samples.
        rejected: reason -> lines.
        n_kept, n_repeated: instructions, for those who count them.
    """

    def __init__(self, folder: Path) -> None:
        self.samples: list[tuple[Sample, Mapping[str, Any]]] = []
        self.noise: list[Noise] = []
        self.kinds: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.rejected: Counter[str] = Counter()
        self.n_kept = self.n_repeated = 0
        self._folder = folder
        self._files = ExitStack()
        self._rejected = self._open("rejected.jsonl")
        self._splits: dict[str, TextIO] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._files:
            for file in self._splits.values():
                file.write("\n]\n")

    def add(self, samples: Sequence[Sample], rows: Sequence[Mapping[str, Any]], noise: Sequence[Noise]) -> None:
        """Write one part: samples with their rows, and lines that are left out."""
        for sample, row in zip(samples, rows, strict=True):
            self._add_row(sample.split, row)
        self._rejected.write(render_lines(map(vars, noise)))
        for split, kinds in count_kinds(samples).items():
            self.kinds[split].update(kinds)
        self.rejected.update(each.reason for each in noise)
        n_free = EXAMPLES - len(self.samples)
        self.samples += zip(samples[:n_free], rows[:n_free], strict=True)
        self.noise += noise[: EXAMPLES - len(self.noise)]

    def add_errors(self, errors: Sequence[str]) -> None:
        """Write why requests had no answer."""
        self._rejected.write(render_lines({"reason": "no answer", "why": error} for error in errors))

    def _add_row(self, split: str, row: Mapping[str, Any]) -> None:
        file = self._splits.get(split)
        if file is None:
            file = self._splits[split] = self._open(f"{split}.json")
            file.write("[\n")
        else:
            file.write(",\n")
        file.write(json.dumps(row, ensure_ascii=False))

    def _open(self, name: str) -> TextIO:
        return self._files.enter_context((self._folder / name).open("x", encoding="utf-8", newline="\n"))
