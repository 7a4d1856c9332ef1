"""Files of rows, whatever their form: a JSON list, JSON Lines, CSV or Parquet, the texts packed with gzip or not.

JSON Lines and Parquet are read as they come, whatever their size; a JSON list and CSV are held in memory as a whole.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import itertools
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.errors import InputError
from data_pipeline.records.text import GZIP_MAGIC, parse_json, parse_json_constant, read_text

PARQUET_MAGIC = b"PAR1"
MAX_LINE_BYTES = 2**26  # of JSON Lines, unpacked
PIECE_BYTES, PIECE_ROWS = 2**23, 20_000  # of a file that is cut: JSON Lines, Parquet
LIST_COLUMNS = frozenset(  # those that hold lists or objects; a CSV holds them as JSON
    ["tools", "candidates", "turns", "conversations", "messages", "history", "images", "videos", "audios"]
)
_ROWS_PER_BATCH = 1024

_BOM = b"\xef\xbb\xbf"
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


@dataclass(frozen=True)
class RowRange:
    """Some consecutive rows of a file.

    Attributes:
        start, end: bytes of JSON Lines, or row groups of Parquet.
        n_before: lines or rows before them.
    """

    start: int
    end: int
    n_before: int


def cut_rows(path: Path) -> list[RowRange]:
    """A file cut so that several processes can read it (`read_range`); [] where it has to be read as a whole."""
    if _begins_with(path, PARQUET_MAGIC):
        return _cut_parquet(path)
    if _begins_with(path, GZIP_MAGIC) or not _is_json_lines(path):
        return []
    ranges, start, n_before, n_lines = [], 0, 0, 0
    with _reading(path), path.open("rb") as file:
        while block := file.read(PIECE_BYTES):
            block += file.readline()
            n_lines += block.count(b"\n")
            ranges.append(RowRange(start, start + len(block), n_before))
            start, n_before = start + len(block), n_lines
    return ranges


def read_range(path: Path, rows: RowRange) -> Iterator[SourceRow]:
    """The rows of one of `cut_rows`, counted as in the whole file; `position` of JSON Lines counts from the range."""
    if _begins_with(path, PARQUET_MAGIC):
        return _read_parquet(path, rows)
    return _read_json_lines(path, rows)


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
    if _is_csv(path):
        return _read_csv(path, read_text(path))
    return _read_json_lines(path) if _is_json_lines(path) else read_json_list(path, read_text(path))


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


def _is_csv(path: Path) -> bool:
    return path.name.lower().removesuffix(".gz").endswith(".csv")


def _is_json_lines(path: Path) -> bool:
    """Whether it is neither CSV nor a JSON list, which begins with a bracket."""
    if _is_csv(path):
        return False
    return next((line.lstrip()[:1] != "[" for _, line in _read_lines(path, None) if line.strip()), True)


def _read_json_lines(path: Path, rows: RowRange | None = None) -> Iterator[SourceRow]:
    position = 0
    for number, line in _read_lines(path, rows):
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


def _read_lines(path: Path, rows: RowRange | None) -> Iterator[tuple[int, str]]:
    """Lines with their numbers from 1. Nothing but a line feed ends one: JSON may hold U+2028 or U+0085 unescaped."""
    with _reading(path), path.open("rb") as file:
        is_packed = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
        start = 0 if rows is None else rows.start
        file.seek(start)
        stream: BinaryIO = gzip.GzipFile(fileobj=file) if is_packed else file  # pyright: ignore[reportAssignmentType]
        for number in itertools.count(1 if rows is None else rows.n_before + 1):
            if rows is not None and start >= rows.end:
                return
            line = stream.readline(MAX_LINE_BYTES + 1)
            if not line:
                return
            if len(line) > MAX_LINE_BYTES:
                raise InputError(f"{path}, line {number} holds more than {MAX_LINE_BYTES:,} bytes; cut the record.")
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                skipped = len(_BOM) if number == 1 and line.startswith(_BOM) else 0
                raise InputError(
                    f"{path} is not UTF-8 at byte {start + skipped + error.start}; save it as UTF-8."
                ) from error
            start += len(line)
            yield number, text


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read ({error}); correct the path or copy the file again.") from error


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


def _cut_parquet(path: Path) -> list[RowRange]:
    try:
        metadata = pq.read_metadata(path)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable_parquet(path, error) from error
    ranges, first, n_before, n_rows = [], 0, 0, 0
    for group in range(metadata.num_row_groups):
        n_rows += metadata.row_group(group).num_rows
        if n_rows - n_before >= PIECE_ROWS or group == metadata.num_row_groups - 1:
            ranges.append(RowRange(first, group + 1, n_before))
            first, n_before = group + 1, n_rows
    return ranges


def _read_parquet(path: Path, rows: RowRange | None = None) -> Iterator[SourceRow]:
    position = 0 if rows is None else rows.n_before
    groups = None if rows is None else range(rows.start, rows.end)
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_ROWS_PER_BATCH, row_groups=groups):
                for content in batch.to_pylist():
                    yield SourceRow(content, f"record {position}", position)
                    position += 1
    except (pa.ArrowException, OSError) as error:
        raise _unreadable_parquet(path, error) from error


def _unreadable_parquet(path: Path, error: Exception) -> InputError:
    return InputError(f"{path} cannot be read ({error}); write the Parquet file again.")


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
