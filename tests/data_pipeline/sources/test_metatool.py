"""MetaTool's released files become records, and their defects end there."""

import json
from pathlib import Path

import pytest

from data_pipeline.errors import InputError
from data_pipeline.records.schema import ToolRecord
from data_pipeline.sources.metatool import MULTI, SINGLE, read_metatool
from data_pipeline.sources.reading import Rejected

TOOLS = {"WeatherTool": "Tells the\nweather.", "PDF&URLTool": "Reads documents.", "word_sneak": "A game of words."}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "plugin_des.json").write_text(json.dumps(TOOLS))
    return tmp_path


def write_queries(folder: Path, *rows: str) -> None:
    (folder / "all_clean_data.csv").write_text("\n".join(["Query,Tool", *rows]) + "\n", encoding="utf-8")


def read(folder: Path, name: str = SINGLE) -> tuple[list[ToolRecord], list[Rejected], dict[str, int]]:
    reading = read_metatool(folder, name)
    items = list(reading)
    records = [item for item in items if isinstance(item, ToolRecord)]
    return records, [item for item in items if isinstance(item, Rejected)], dict(+reading.repairs)


def test_defects_of_the_released_rows_are_mended(folder: Path) -> None:
    write_queries(
        folder,
        '" Will it rain, or snow? ",WeatherTool',
        "A caf茅 in the sun?,WeatherTool",  # UTF-8 read as GBK
        "What does 你好 mean?,word_sneak",  # Chinese that is meant
        '"will it  rain, or snow?",word_sneak',  # the first query but for case and spacing
        "Read this.,PDF&URLTool",
    )
    records, rejected, repairs = read(folder)
    assert not rejected
    assert [(record.instruction, record.valid_tool_ids) for record in records] == [
        ("Will it rain, or snow?", ("WeatherTool", "word_sneak")),
        ("A café in the sun?", ("WeatherTool",)),
        ("What does 你好 mean?", ("word_sneak",)),
        ("Read this.", ("PDF&URLTool",)),
    ]
    assert records[2].record_id == "metatool/all_clean_data/2"
    assert repairs == {
        "white space around a query": 1,
        "UTF-8 that was read as GBK": 1,
        "query repeated under another tool": 1,
    }


def test_rows_that_cannot_be_mended_are_rejected_and_the_others_read(folder: Path) -> None:
    write_queries(
        folder, '"One?\nWeather_Forecast,Two?",WeatherTool', "Three?,NoSuchTool", ",WeatherTool", "x,word_sneak"
    )
    records, rejected, _ = read(folder)
    assert [record.instruction for record in records] == ["x"]
    assert [(item.reason.split(":")[0], item.where) for item in rejected] == [
        ("the query holds several lines", "all_clean_data.csv, record 0"),
        ("a tool is not in plugin_des.json", "all_clean_data.csv, record 1"),
        ("the query is empty or no text", "all_clean_data.csv, record 2"),
    ]


def test_queries_for_two_tools_are_a_source_of_their_own(folder: Path) -> None:
    pairs = [
        {"query": "Rain in this PDF?", "tool": ["WeatherTool", "PDF&URLTool"]},
        {"query": "One tool only", "tool": ["WeatherTool"]},
        {"query": "No list", "tool": "WeatherTool"},
        {"query": "rain in this pdf?", "tool": ["word_sneak", "PDF&URLTool"]},  # the first pair stands
    ]
    (folder / "multi_tool_query_golden.json").write_text(json.dumps(pairs))
    records, rejected, repairs = read(folder, MULTI)
    assert [(record.source, record.valid_tool_ids) for record in records] == [(MULTI, ("WeatherTool", "PDF&URLTool"))]
    assert len(rejected) == 2
    assert repairs == {"query repeated under another tool": 1}


def test_descriptions_become_the_catalogues_cards(folder: Path) -> None:
    write_queries(folder, "x,word_sneak")
    catalog = read_metatool(folder).catalog
    assert catalog.tool_ids == (*TOOLS, "unknown")
    assert catalog["WeatherTool"].description == "Tells the weather."


@pytest.mark.parametrize(("name", "missing"), [(SINGLE, "all_clean_data.csv"), (MULTI, "multi_tool_query_golden.json")])
def test_a_missing_file_is_named(folder: Path, name: str, missing: str) -> None:
    with pytest.raises(InputError, match=missing):
        read_metatool(folder, name)


@pytest.mark.parametrize("text", ["[]", '{"WeatherTool": null}', '{"a tool": "with a space"}'])
def test_a_bad_file_of_descriptions_is_named(folder: Path, text: str) -> None:
    write_queries(folder, "x,word_sneak")
    (folder / "plugin_des.json").write_text(text)
    with pytest.raises(InputError, match="plugin_des"):
        read_metatool(folder)


def test_the_released_files_are_read(shared_dir: Path) -> None:
    folder = shared_dir / "metatool"
    reading = read_metatool(folder)
    records, rejected, repairs = read(folder)
    assert len(reading.catalog) == 200  # and unknown
    assert all(tool.description for tool in reading.catalog)
    assert (len(records), len(rejected)) == (16_438, 1)  # 16,492 rows, 53 of them repeat a query
    assert repairs == {
        "UTF-8 that was read as GBK": 7,
        "white space around a query": 633,
        "query repeated": 41,
        "query repeated under another tool": 12,
    }
    assert {tool_id for record in records for tool_id in record.valid_tool_ids} == set(reading.catalog.tool_ids) - {
        "unknown"
    }
    pairs, none, _ = read(folder, MULTI)
    assert (len(pairs), len(none)) == (497, 0)
    assert all(len(record.valid_tool_ids) == 2 for record in pairs)
