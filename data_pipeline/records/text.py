"""Text as it comes in: whole files of it, JSON, what UTF-8 can hold, and when two texts have the same words."""

from __future__ import annotations

import gzip
import json
import unicodedata
import zlib
from typing import Any

from data_pipeline import storage
from data_pipeline.errors import InputError
from data_pipeline.locations import Location

MAX_TEXT_BYTES = 2 * 2**30  # of one file, unpacked; it is held in memory as a whole

GZIP_MAGIC = b"\x1f\x8b"


def read_text(path: Location) -> str:
    """A whole file of UTF-8, plain or packed with gzip, with or without a byte order mark.

    Raises:
        InputError: it cannot be read, is no UTF-8, or is larger than `MAX_TEXT_BYTES`.
    """
    try:
        with storage.reading_file(path) as file:
            is_packed = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
            file.seek(0)
            data = (gzip.GzipFile(fileobj=file) if is_packed else file).read(MAX_TEXT_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read ({error}); correct the path or copy the file again.") from error
    if len(data) > MAX_TEXT_BYTES:
        raise InputError(f"{path} holds more than {MAX_TEXT_BYTES:,} bytes of text; cut it into several files.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 at byte {error.start}; save it as UTF-8.") from error


def cut_words(words: str, max_chars: int) -> str:
    """At most so many characters, broken off behind a word."""
    if len(words) <= max_chars:
        return words
    return words[: max_chars - 1].rsplit(" ", 1)[0].rstrip(",;:") + "…"


def parse_json(text: str) -> Any:
    """One JSON value; NaN, which pandas writes for what is absent, is null.

    Raises:
        InputError: "not valid JSON (...)", without a full stop, for the caller to say where and how to mend it.
    """
    try:
        return json.loads(text, parse_constant=parse_json_constant)
    except RecursionError as error:
        raise InputError("not valid JSON (nested too deeply)") from error
    except ValueError as error:  # a number with thousands of digits is one that is no JSONDecodeError
        raise InputError(f"not valid JSON ({error})") from error


def parse_json_constant(name: str) -> None:
    """What a JSON decoder takes for NaN, which is null, and for Infinity, which is refused."""
    if name != "NaN":
        raise ValueError(f"{name} is no JSON number")


def check_encodable(text: str) -> None:
    """Refuse text that UTF-8 cannot hold (a lone surrogate from a JSON escape), as no file could store it."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"the text holds a lone surrogate at character {error.start}; write the character itself."
        ) from error


def words_key(text: str) -> str:
    """What texts with the same words have in common: case, spacing and Unicode spelling (NFC, NFD) do not count.

    Reference: The Unicode Standard, section 3.13, D145 (canonical caseless matching).
    """
    folded = unicodedata.normalize("NFD", text).casefold()
    return " ".join(unicodedata.normalize("NFC", folded).split())
