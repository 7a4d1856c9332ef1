"""Markdown that people read in a terminal as well."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

_NUMBER = re.compile(r"\s*([-–+]?\d.*|[-–]?)", re.DOTALL)  # or a dash, or nothing, where there is none


def render_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table whose columns are padded to equal width.

    The first column, and every other that holds words, is left-aligned; columns of numbers are right-aligned. A last
    column of words is not padded, as one long text would draw all lines out. A bar in a cell is escaped, a line break
    becomes a space.

    Args:
        header: C > 0 names of columns.
        rows: C cells each; what is no string is shown as `str` has it.
    """
    lines = [[_escape(cell) for cell in row] for row in (header, *rows)]
    is_left = [
        column == 0 or not all(_NUMBER.fullmatch(row[column]) for row in lines[1:]) for column in range(len(header))
    ]
    widths = [max(3, *(len(row[column]) for row in lines)) for column in range(len(header))]
    if is_left[-1] and len(header) > 1:
        widths[-1] = 3
    rule = [
        ":" + "-" * (width - 1) if left else "-" * (width - 1) + ":"
        for width, left in zip(widths, is_left, strict=True)
    ]
    lines.insert(1, rule)
    return "\n".join("| " + " | ".join(map(_pad, row, widths, is_left)) + " |" for row in lines)


def _pad(cell: str, width: int, is_left: bool) -> str:
    return cell.ljust(width) if is_left else cell.rjust(width)


def _escape(cell: Any) -> str:
    return " ".join(str(cell).replace("|", "\\|").splitlines())
