"""Files of rows: whatever their form, the same rows; one that cannot be parsed does not take the others with it."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.errors import InputError
from data_pipeline.sources import rows as rows_module
from data_pipeline.sources.rows import cut_rows, read_range, read_rows

ROWS = [{"instruction": "Grün?\u2028Ja", "tools": ["a", "b"]}, {"instruction": "[x", "tools": ["a"]}]
DEEP = "[" * 100_000 + "]" * 100_000


def _write(folder: Path, name: str) -> Path:
    path = folder / name
    lines = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)
    if ".parquet" in name:
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif ".csv" in name:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ["instruction", "tools", "media"])
            writer.writeheader()
            writer.writerow({"instruction": ROWS[0]["instruction"], "tools": '["a", "b"]'})
            writer.writerow({"instruction": ROWS[1]["instruction"], "tools": "a", "media": ""})
    else:
        path.write_text(json.dumps(ROWS, indent=1) if ".json" in path.suffixes else "\n" + lines, encoding="utf-8")
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(path.read_bytes()))
    return path


@pytest.mark.parametrize(
    "name", ["a.json", "a.jsonl", "a.ndjson", "a.json.gz", "a.jsonl.gz", "a.csv", "a.CSV", "a.csv.gz", "a.parquet"]
)
def test_every_form_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    rows = list(read_rows(_write(tmp_path, name.lower()).rename(tmp_path / f"b{name}")))
    assert [row.content for row in rows] == ROWS
    assert [row.position for row in rows] == [0, 1]
    assert not any(row.fault for row in rows)


def test_places_are_those_of_the_file(tmp_path: Path) -> None:
    assert [row.place for row in read_rows(_write(tmp_path, "a.jsonl"))] == ["line 2", "line 3"]
    assert [row.number for row in read_rows(_write(tmp_path, "a.json"))] == ["0", "1"]


@pytest.mark.parametrize("text", ["[]", " [ ]\n", ""])
def test_nothing_is_no_row(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    assert list(read_rows(tmp_path / "a.json")) == []


@pytest.mark.parametrize("as_list", [True, False])
def test_rows_that_cannot_be_parsed_stand_alone(tmp_path: Path, as_list: bool) -> None:
    odd = ['{"a": ' + DEEP + ', "b": "]}[\\""}', '{"a": ' + "9" * 5000 + "}", '{"a": Infinity}']
    texts = ['{"a": 1}', *odd, '{"a": NaN}']
    (tmp_path / "a.json").write_text(f"[{', '.join(texts)}]" if as_list else "\n".join(texts))
    rows = list(read_rows(tmp_path / "a.json"))
    assert [row.content for row in rows] == [{"a": 1}, None, None, None, {"a": None}]
    assert [row.fault[:10] for row in rows] == ["", "nested too", "a number i", "a number i", ""]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"[1, 2", r"a\.json is not valid JSON"),
        ("a.json", b"[1 2]", "no comma behind record 0"),
        ("a.json", b"[1,]", "not valid JSON"),
        ("a.json", b"[1] [2]", "something follows the list"),
        ("a.jsonl", b'{"a": 1}\n{"a"', "line 2: not valid JSON"),
        ("a.jsonl", b"\x1f\x8b\x08broken", "cannot be read"),
        ("a.parquet", b"PAR1broken", "cannot be read"),
        ("a.csv", b'a,b\n"x', "not valid CSV"),
        ("a.csv", b"a,a\n1,2\n", "a column has no name, or the name of another"),
    ],
)
def test_files_that_are_not_well_formed_are_errors(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        list(read_rows(tmp_path / name))


def test_a_csv_row_with_too_many_cells_is_at_fault(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b\n1,2,3\n4,\n")
    first, second = read_rows(tmp_path / "a.csv")
    assert first.fault == "more cells than columns"
    assert second.content == {"a": "4"}


def test_a_file_that_is_cut_has_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte order mark, blank lines, signs that only look like line breaks, and lines longer than a piece."""
    monkeypatch.setattr(rows_module, "PIECE_BYTES", 64)
    monkeypatch.setattr(rows_module, "PIECE_ROWS", 10)
    texts = [json.dumps({"a": f"{number}\u2028\x85ü" * (1 + number % 9)}, ensure_ascii=False) for number in range(50)]
    texts.insert(20, "\r")
    (tmp_path / "a.jsonl").write_text("\ufeff" + "\n\n".join(texts), encoding="utf-8", newline="")
    pq.write_table(pa.table({"a": range(95)}), tmp_path / "a.parquet", row_group_size=4)
    for name, n_pieces in (("a.jsonl", 25), ("a.parquet", 8)):
        pieces = cut_rows(tmp_path / name)
        assert len(pieces) >= n_pieces
        rows = [row for piece in pieces for row in read_range(tmp_path / name, piece)]
        assert [(row.content, row.place) for row in rows] == [
            (row.content, row.place) for row in read_rows(tmp_path / name)
        ]
        assert len(rows) in (50, 95)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}\n'))
    assert cut_rows(tmp_path / "b.jsonl.gz") == [], "what is packed cannot be read from its middle"


def test_what_is_no_utf_8_and_what_has_no_end_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n{"a": "\xff"}\n')
    with pytest.raises(InputError, match=r"a\.jsonl is not UTF-8 at byte 16"):
        list(read_rows(tmp_path / "a.jsonl"))
    monkeypatch.setattr(rows_module, "MAX_LINE_BYTES", 1000)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}\n' + b" " * 10**6))
    with pytest.raises(InputError, match=r"line 2 holds more than 1,000 bytes"):
        list(read_rows(tmp_path / "b.jsonl.gz"))
