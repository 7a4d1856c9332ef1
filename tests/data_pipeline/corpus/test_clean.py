"""From a source to distinct records: one question, one record, whatever sources and spellings it came in."""

from __future__ import annotations

import tempfile
import unicodedata
from pathlib import Path

import pytest

from data_pipeline.corpus.attach import Spellings
from data_pipeline.corpus.clean import clean_records
from data_pipeline.errors import InputError
from data_pipeline.records.catalog import ToolCatalog
from data_pipeline.records.schema import Modality, ToolRecord
from data_pipeline.sources.reading import SourceReading

NFC, NFD = (unicodedata.normalize(form, "grün") for form in ("NFC", "NFD"))


def _record(number: int, instruction: str, *tool_ids: str, **fields: object) -> ToolRecord:
    values = {"source": "test", "modality": Modality.TEXT} | fields
    return ToolRecord(record_id=str(number), instruction=instruction, valid_tool_ids=tool_ids or ("a",), **values)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _clean(*records: ToolRecord, resplit: bool = False) -> tuple[list[ToolRecord], SourceReading]:
    reading = SourceReading("test", "", ToolCatalog.from_tool_ids("abc"), None, records)
    folder = Path(tempfile.mkdtemp(dir="."))
    return list(clean_records(reading, folder, "keep", resplit).records()), reading


def test_questions_with_the_same_words_are_joined() -> None:
    (record, other), _ = _clean(
        _record(0, f"Make it {NFC}", "a"), _record(1, f"make  it {NFD} ", "b", source="other"), _record(2, "make it")
    )
    assert (record.record_id, record.instruction, record.valid_tool_ids) == ("0", f"Make it {NFC}", ("a", "b"))
    assert other.record_id == "2"


def test_a_question_without_a_split_joins_one_that_has_it() -> None:
    free, test, train = (
        _record(0, "q", "a", source="free"),
        _record(1, "Q", "b", split="test"),
        _record(2, "q ", "c", source="third", split="train"),
    )
    (record,), _ = _clean(free, test)
    assert (record.record_id, record.split, record.valid_tool_ids) == ("1", "test", ("b", "a"))
    records, _ = _clean(test, free, train)
    assert {(r.split, r.valid_tool_ids) for r in records} == {("test", ("b",)), ("train", ("c", "a"))}, (
        "what is trained on already stays there, and the audit reports it"
    )
    (record,), _ = _clean(test, train, resplit=True)
    assert (record.split, record.valid_tool_ids) == ("", ("b", "c"))


def test_joined_test_questions_keep_their_positions() -> None:
    records, reading = _clean(
        _record(0, "q", split="test", source_index=4),
        _record(1, "Q", split="test", source_index=6),
        _record(2, "other", split="test", source_index=7),
    )
    assert [record.source_index for record in records] == [4, 7]
    assert reading.merged_source_indexes == {4: [6]}


def test_files_are_found_in_another_unicode_spelling(tmp_path: Path) -> None:
    (tmp_path / NFD).mkdir()
    (tmp_path / NFD / f"{NFD}.png").write_bytes(b"x")
    (tmp_path / f"{NFC}.png").write_bytes(b"y")
    uris = [f"{NFC}/{NFC}.png", f"{NFD}/{NFC}.png", f"{NFD}.png", f"{NFC}.png", f"{NFC}/absent.png", "absent/ü.png"]
    real = f"{NFD}/{NFD}.png"
    assert Spellings(tmp_path).find(uris) == {uris[0]: real, uris[1]: real, uris[2]: f"{NFC}.png"}


def test_an_id_that_is_used_twice_is_named() -> None:
    with pytest.raises(InputError, match="record id '1' of source 'test' is used twice"):
        _clean(_record(0, "p"), _record(1, "q"), _record(1, "r"))
