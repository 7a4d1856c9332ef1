"""Text as it comes in: packed or not, JSON that pandas wrote, and texts with the same words."""

from __future__ import annotations

import gzip
import unicodedata
from pathlib import Path

import pytest

from data_pipeline.errors import InputError
from data_pipeline.records import text as text_module
from data_pipeline.records.text import check_encodable, cut_words, parse_json, read_text, words_key


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Make it SHARP", "make  it sharp "),
        (unicodedata.normalize("NFC", "Schöne Äpfel"), unicodedata.normalize("NFD", "schöne äpfel")),
        ("STRASSE", "straße"),
        ("a\u00a0b\nc", "a b c"),
        ("\u0345\u03b1", unicodedata.normalize("NFD", "\u0345\u03b1").upper()),
    ],
)
def test_the_same_words_have_one_key(one: str, other: str) -> None:
    assert one != other
    assert words_key(one) == words_key(other)


@pytest.mark.parametrize(("one", "other"), [("2²", "22"), ("resume", "résumé"), ("a b", "ab"), ("it?", "it")])
def test_other_words_have_another(one: str, other: str) -> None:
    assert words_key(one) != words_key(other)


@pytest.mark.parametrize(
    ("words", "max_chars", "cut"),
    [
        ("Finds cats", 10, "Finds cats"),
        ("Finds cats, dogs", 13, "Finds cats…"),
        ("Finds all dogs", 13, "Finds all…"),
        ("Antidisestablishment", 10, "Antidises…"),
    ],
)
def test_words_are_broken_off_behind_one(words: str, max_chars: int, cut: str) -> None:
    assert cut_words(words, max_chars) == cut


def test_a_file_is_read_packed_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = "\ufeffgrün\n".encode()
    plain, packed = tmp_path / "a.txt", tmp_path / "b.jsonl.gz"
    plain.write_bytes(content)
    packed.write_bytes(gzip.compress(content))
    assert read_text(plain) == read_text(packed) == "grün\n"
    packed.write_bytes(gzip.compress(content)[:-4])
    with pytest.raises(InputError, match=r"b\.jsonl\.gz cannot be read"):
        read_text(packed)
    plain.write_bytes(b"ab\xff")
    with pytest.raises(InputError, match="not UTF-8 at byte 2"):
        read_text(plain)
    with pytest.raises(InputError, match="absent cannot be read"):
        read_text(tmp_path / "absent")
    monkeypatch.setattr(text_module, "MAX_TEXT_BYTES", 100)
    packed.write_bytes(gzip.compress(b" " * 101))
    with pytest.raises(InputError, match="more than 100 bytes"):
        read_text(packed)


def test_json_is_read_as_pandas_writes_it() -> None:
    assert parse_json('{"a": NaN, "b": [NaN, 1]}') == {"a": None, "b": [None, 1]}
    for bad in ("{", "[" * 100_000, "[Infinity]", "1" * 5000):
        with pytest.raises(InputError, match=r"^not valid JSON \("):
            parse_json(bad)


def test_lone_surrogates_are_refused() -> None:
    check_encodable("😀")
    with pytest.raises(InputError, match="lone surrogate at character 1"):
        check_encodable("a\ud83d")
