"""Files of rows, whatever their form: a JSON list, JSON Lines, CSV or Parquet, the texts packed with gzip or not."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.errors import InputError
from data_pipeline.records.text import parse_json, parse_json_constant, read_text

PARQUET_MAGIC = b"PAR1"
LIST_COLUMNS = frozenset(  # those that hold lists or objects; a CSV holds them as JSON
    ["tools", "candidates", "turns", "conversations", "messages", "history", "images", "videos", "audios"]
)
_ROWS_PER_BATCH = 1024

_BLANK = re.compile(r"[ \t\n\r]*")
_BRACKETS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)  # a string, whose brackets do not count, or one


@dataclass(frozen=True)
class SourceRow:
    """One row of a file.

    Attributes:
        content: as it was parsed, mostly a dict; None where it could not be.
        place: "line 3" from 1, or "record 2" from 0, as the file counts.
        position: 0-based, among the file's rows.
        fault: why it could not be parsed, or "".
    """

    content: Any
    place: str
    position: int
    fault: str = ""

    @property
    def number(self) -> str:
        """The number in `place`."""
        return self.place.split()[1]


def read_rows(path: Path) -> Iterator[SourceRow]:
    """The rows of a file, one after the other.

    Args:
        path: a JSON list or JSON Lines, told apart by the first character; Parquet; or CSV, named so, whose empty cells
            are absent and whose `LIST_COLUMNS` hold JSON.

    Raises:
        InputError: the file cannot be read, or (while iterating) is not well formed.
    """
    if _begins_with(path, PARQUET_MAGIC):
        return _read_parquet(path)
    text = read_text(path)
    if path.name.lower().removesuffix(".gz").endswith(".csv"):
        return _read_csv(path, text)
    if text.lstrip()[:1] == "[":
        return read_json_list(path, text)
    return _read_json_lines(path, text)


def read_json_list(path: Path, text: str) -> Iterator[SourceRow]:
    """The elements of a JSON list, parsed one by one, so that one that cannot be does not take the others with it."""
    decoder = json.JSONDecoder(parse_constant=parse_json_constant)
    end = _skip_blanks(text, _skip_blanks(text, 0) + 1)
    position = 0
    while text[end : end + 1] != "]" or position:
        content, fault = None, ""
        try:
            content, end = decoder.raw_decode(text, end)
        except json.JSONDecodeError as error:
            raise InputError(f"{path} is not valid JSON ({error}); copy the file again, or mend it there.") from error
        except (RecursionError, ValueError) as error:
            fault = _describe(error)
            end = _skip_brackets(text, end)
        yield SourceRow(content, f"record {position}", position, fault)
        position += 1
        end = _skip_blanks(text, end)
        if text[end : end + 1] == "]":
            break
        if text[end : end + 1] != ",":
            raise InputError(f"{path} is not valid JSON (no comma behind record {position - 1}); copy the file again.")
        end = _skip_blanks(text, end + 1)
    if text[_skip_blanks(text, end + 1) :]:
        raise InputError(f"{path} is not valid JSON (something follows the list); copy the file again.")


def _read_json_lines(path: Path, text: str) -> Iterator[SourceRow]:
    position = 0
    # not splitlines(): JSON may hold U+2028 or U+0085 unescaped, and they end no line
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        content, fault = None, ""
        try:
            content = parse_json(line)
        except InputError as error:
            if isinstance(error.__cause__, json.JSONDecodeError):
                raise InputError(f"{path}, line {number}: {error}; write one JSON object a line.") from error
            fault = _describe(error.__cause__)
        yield SourceRow(content, f"line {number}", position, fault)
        position += 1


def _read_csv(path: Path, text: str) -> Iterator[SourceRow]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    names = reader.fieldnames or []
    if len(set(names)) != len(names) or "" in names:
        raise InputError(f"{path}: a column has no name, or the name of another; name each in the first line.")
    position = 0
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise InputError(
                f"{path}, line {reader.line_num}: not valid CSV ({error}); write it as RFC 4180."
            ) from error
        if row is None:
            return
        fault = "more cells than columns" if None in row else ""
        content = {name: _read_cell(name, cell) for name, cell in row.items() if name and cell}
        yield SourceRow(None if fault else content, f"line {reader.line_num}", position, fault)
        position += 1


def _read_cell(name: str, cell: str) -> Any:
    if name not in LIST_COLUMNS:
        return cell
    if cell.lstrip()[:1] not in ("[", "{"):
        return [cell]
    try:
        return parse_json(cell)
    except InputError:  # the form's reader says what it expected there
        return cell


def _read_parquet(path: Path) -> Iterator[SourceRow]:
    position = 0
    try:
        for batch in pq.ParquetFile(path).iter_batches(_ROWS_PER_BATCH):
            for content in batch.to_pylist():
                yield SourceRow(content, f"record {position}", position)
                position += 1
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} cannot be read ({error}); write the Parquet file again.") from error


def _describe(error: BaseException | None) -> str:
    """Why well-formed JSON cannot be taken."""
    return "nested too deeply" if isinstance(error, RecursionError) else "a number is infinite or has too many digits"


def _begins_with(path: Path, magic: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(magic)) == magic
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error}); correct the path.") from error


def _skip_blanks(text: str, start: int) -> int:
    blanks = _BLANK.match(text, start)
    return start if blanks is None else blanks.end()


def _skip_brackets(text: str, start: int) -> int:
    """The end of the list or object that begins at `start`."""
    depth = 0
    for found in _BRACKETS.finditer(text, start):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(found[0], 0)
        if depth == 0 and found[0] in "]}":
            return found.end()
    return len(text)
