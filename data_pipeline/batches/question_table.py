"""Questions of a tokenised split, read from its shards as they are asked for."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from data_pipeline import storage
from data_pipeline.batches.choices import AnswerChoices
from data_pipeline.batches.encoding import EncodedQuestion
from data_pipeline.batches.token_shards import TokenShards, questions_name


class QuestionTable:
    """A sequence of `EncodedQuestion`s that lie in files; the files are mapped into memory, not read.

    Of a split in a bucket this machine keeps a copy on its disk. `release` gives back what has been touched, so that
    the process grows with what it uses at a time and not with the split.

    Args:
        shards: of the split.
        rows: int [N]; which of the split's questions these are.
        tool_choices: what the answer that names each tool decides; () where no loss is under the trie.
    """

    def __init__(self, shards: TokenShards, rows: np.ndarray, tool_choices: Sequence[AnswerChoices] = ()) -> None:
        self._tool_choices = tool_choices
        self._rows = rows
        self._folder = storage.fetch_folder(shards.folder)
        self._ends = np.cumsum([part.rows for part in shards.parts])
        self._parts: dict[int, _MappedPart] = {}
        self._touched: set[int] = set()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> EncodedQuestion:
        part, row = self._find(index)
        bears_loss = part.columns["bears_loss"][row]
        return EncodedQuestion(
            np.asarray(part.columns["prompt_ids"][row].values),
            _inner_arrays(part.columns["answers"][row]),
            _inner_arrays(bears_loss) if bears_loss.is_valid else None,
            self._choices_of(index),
        )

    def tools_of(self, index: int) -> list[int]:
        """The right tools of a question by number; none of a dialogue."""
        part, row = self._find(index)
        tools = part.columns["answer_tools"][row]
        return tools.values.to_pylist() if tools.is_valid else []

    def asks_of(self, index: int) -> list[tuple[int, list[int]]]:
        """Where a question is compared with cards: (tokens of its answer before that, right tools by number)."""
        part, row = self._find(index)
        calls = part.columns["call_tools"][row].values.to_pylist()
        if calls:
            starts = part.columns["call_starts"][row].values.to_pylist()
            return [(start, [tool]) for start, tool in zip(starts, calls, strict=True)]
        tools = self.tools_of(index)
        return [(0, tools)] if tools else []

    def find_answer_tools(self) -> list[int]:
        """The tools that some question here is answered with, by number, in order."""
        found = set[int]()
        numbers = np.searchsorted(self._ends, self._rows, side="right")
        for number in np.unique(numbers).tolist():
            start = int(self._ends[number - 1]) if number else 0
            rows = pa.array(self._rows[numbers == number] - start)
            found.update(self._open(number).columns["answer_tools"].take(rows).flatten().unique().to_pylist())
            self.release()
        return sorted(found)

    def release(self) -> None:
        """Give back the memory of what has been read: it is read again where it is asked for again."""
        for number in self._touched:
            self._parts[number].map.madvise(mmap.MADV_DONTNEED)
        self._touched.clear()

    def _find(self, index: int) -> tuple[_MappedPart, int]:
        """The part in which a question is, and its row there."""
        row = int(self._rows[index])
        number = int(np.searchsorted(self._ends, row, side="right"))
        return self._open(number), row - (int(self._ends[number - 1]) if number else 0)

    def _open(self, number: int) -> _MappedPart:
        if number not in self._parts:
            self._parts[number] = _MappedPart(self._folder / questions_name(number))
        self._touched.add(number)
        return self._parts[number]

    def _choices_of(self, index: int) -> list[AnswerChoices] | None:
        if not self._tool_choices:
            return None
        tools = self.tools_of(index)
        return [self._tool_choices[number] for number in tools] if tools else None


class _MappedPart:
    """One file of questions, mapped: its columns are views."""

    def __init__(self, file: Any) -> None:
        with file.open("rb") as stream:
            self.map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        self.map.madvise(mmap.MADV_RANDOM)  # a plan is shuffled: what lies behind a question is not asked for next
        batch = pa.ipc.open_file(pa.py_buffer(self.map)).get_batch(0)
        self.columns: dict[str, Any] = dict(zip(batch.schema.names, batch.columns, strict=True))


def _inner_arrays(lists: Any) -> list[np.ndarray]:
    values = lists.values
    return [values[n].values.to_numpy(zero_copy_only=False) for n in range(len(values))]
