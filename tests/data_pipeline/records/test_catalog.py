"""The tool catalogue: closed, hashed by content, read back as written, faults named by line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import InputError
from data_pipeline.records.catalog import Tool, ToolCatalog

TOOLS = (
    Tool("lab/dehaze", "Removes haze.", "image", "image", "local"),
    Tool("t5-base", "Two lines\u2028in one, \u0085 and \u2029 too", "text", "text", "huggingface"),
    Tool("unknown"),
)


def test_what_is_written_is_read_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "catalog.jsonl"
    catalog = ToolCatalog(TOOLS)
    catalog.save_jsonl(path)
    again = ToolCatalog.load_jsonl(path)
    assert tuple(again) == TOOLS
    assert again.tool_ids == ("lab/dehaze", "t5-base", "unknown")
    assert again.content_hash == catalog.content_hash
    assert [p.name for p in tmp_path.iterdir()] == ["catalog.jsonl"], "no temporary file is left"


def test_hash_depends_on_content_and_not_on_order() -> None:
    catalog = ToolCatalog(TOOLS)
    assert ToolCatalog(reversed(TOOLS)).content_hash == catalog.content_hash
    changed = (Tool("lab/dehaze", "Removes haze", "image", "image", "local"), *TOOLS[1:])
    assert ToolCatalog(changed).content_hash != catalog.content_hash
    assert ToolCatalog(TOOLS[:2]).content_hash != catalog.content_hash


def test_it_is_a_closed_set() -> None:
    catalog = ToolCatalog.from_tool_ids(["a", "b"])
    assert len(catalog) == 2
    assert "a" in catalog
    assert "c" not in catalog
    assert catalog["b"] == Tool("b")
    with pytest.raises(InputError, match="'a' is in the catalogue twice"):
        ToolCatalog.from_tool_ids(["a", "b", "a"])


def test_what_only_dialogues_need_is_kept_and_changes_no_older_hash(tmp_path: Path) -> None:
    path = tmp_path / "catalog.jsonl"
    tool = Tool("g/crop", name="Crop It", usage="to crop. Input: image_path, text", arguments=("image_path", "text"))
    catalog = ToolCatalog([*TOOLS, tool])
    catalog.save_jsonl(path)
    again = ToolCatalog.load_jsonl(path)
    assert again["g/crop"] == tool
    assert (again["g/crop"].call_name, again["t5-base"].call_name) == ("Crop It", "t5-base")
    assert again.content_hash == catalog.content_hash
    assert '"name"' not in path.read_text(encoding="utf-8").split("\n")[0], "left out where it is empty"
    older = "e2a626036bfc50083ede5070d6ce47233eaedbef57d18379a605b314f777b7ab"
    assert ToolCatalog(TOOLS).content_hash == older, "of catalogues written before these fields were there"


def test_the_schema_of_a_tools_parameters_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "catalog.jsonl"
    schema = {"type": "object", "properties": {"unit": {"type": "string"}, "city": {}}, "required": ["city"]}
    tool = Tool("weather", "Tells the weather.", parameters=schema)
    assert tool.arguments == ("city", "unit")
    assert Tool("weather", arguments=("unit",), parameters=schema).arguments == ("unit",), "as they were given"
    catalog = ToolCatalog([*TOOLS, tool])
    catalog.save_jsonl(path)
    again = ToolCatalog.load_jsonl(path)
    assert (again["weather"], hash(again["weather"])) == (tool, hash(tool))
    assert again.content_hash == catalog.content_hash
    other = Tool("weather", "Tells the weather.", arguments=("city", "unit"))
    assert ToolCatalog([*TOOLS, other]).content_hash != catalog.content_hash


def test_what_a_card_says_of_a_tools_function_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "catalog.jsonl"
    tool = Tool(
        "lab/derain",
        domain="Computer Vision",
        coarse_functionality="image-to-image",
        fine_functionality="Image Deraining",
        example_code="import lab\n\nlab.derain('wet.png')",
    )
    ToolCatalog([TOOLS[0], tool]).save_jsonl(path)
    assert tuple(ToolCatalog.load_jsonl(path)) == (TOOLS[0], tool)
    first, _ = path.read_text(encoding="utf-8").splitlines()
    assert list(json.loads(first)) == ["tool_id", "description", "input_modality", "output_modality", "backend"]


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "a\nb"},
        {"name": "a, b"},
        {"name": " a"},
        {"name": "a\u2028b"},
        {"usage": "a\nb"},
        {"fine_functionality": "a\nb"},
        {"domain": "a" * 201},
        {"example_code": "a" * 4001},
        {"example_code": ["a"]},
        {"arguments": "ab"},
        {"arguments": 5},
        {"arguments": ("a", 1)},
        {"arguments": ("a", "")},
        {"name": 5},
        {"description": None},
        {"usage": ["a"]},
        {"input_modality": "Image"},
        {"output_modality": "3d"},
        {"backend": "gpu"},
        {"description": "a\ud800"},
        {"arguments": ("a\ud800",)},
        {"parameters": []},
        {"parameters": {"type": "array"}},
        {"parameters": {"properties": {"a\ud800": {}}}},
        {"parameters": {"properties": {"a": {"type": "int"}}}},
    ],
)
def test_what_a_prompt_could_not_hold_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="'t'"):
        Tool("t", **fields)


@pytest.mark.parametrize("tool_id", ["", "a b", "a\tb", "a}", "{a", "a,b", "it's", '"a"', "[a", "a\u2028b"])
def test_an_id_that_an_answer_could_not_hold_is_refused(tool_id: str) -> None:
    with pytest.raises(InputError, match="rename the tool"):
        Tool(tool_id)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", "not a tool entry"),
        ("[1, 2]", "not a tool entry"),
        ('{"tool_id": "b", "colour": "red"}', r"colour.*tool_id, description, input_modality"),
        ('{"description": "nameless"}', "tool_id"),
        ('{"tool_id": "two words"}', "rename the tool"),
        ('{"tool_id": null}', "tool_id"),
        ('{"tool_id": 5}', "tool_id is 5; give a text"),
        ('{"tool_id": "a\\ud800"}', "lone surrogate"),
        ('{"tool_id": "b", "description": 7}', "description of tool 'b' is 7; give a text"),
        ('{"tool_id": "b", "input_modality": "picture"}', "must be one of '', 'text', 'image'"),
        ('{"tool_id": "b", "arguments": {"a": 1}}', "give a list of names"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_a_bad_line_is_named_by_its_number(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "catalog.jsonl"
    path.write_text('{"tool_id": "a", "description": "\u2028"}\n\n' + line + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=rf"catalog\.jsonl, line 3: .*{message}"):
        ToolCatalog.load_jsonl(path)


def test_null_is_absent_and_a_byte_order_mark_is_none_of_the_text(tmp_path: Path) -> None:
    """pandas writes null for every field that another entry has; editors write the mark."""
    path = tmp_path / "catalog.jsonl"
    fields = dict.fromkeys(
        ("description", "input_modality", "output_modality", "backend", "name", "usage", "arguments", "parameters")
    )
    path.write_text("\ufeff" + json.dumps({"tool_id": "a", **fields}) + "\r\n", encoding="utf-8")
    assert tuple(ToolCatalog.load_jsonl(path)) == (Tool("a"),)


def test_two_tools_of_one_call_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the tools 'a' and 'b' both 'Crop It'; rename"):
        ToolCatalog([Tool("a", name="Crop It"), Tool("b", name="Crop It")])
    with pytest.raises(InputError, match=r"the tools 'crop' and 'b' both 'crop'"):
        ToolCatalog([Tool("crop"), Tool("b", name="crop")])
    assert len(ToolCatalog([Tool("crop", name="Crop"), Tool("crop-it", name="Crop It")])) == 2, "a beginning is no twin"
    path = tmp_path / "catalog.jsonl"
    path.write_text('{"tool_id": "a", "name": "x"}\n{"tool_id": "b", "name": "x"}\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"catalog\.jsonl: a dialogue calls"):
        ToolCatalog.load_jsonl(path)


def test_a_file_that_is_absent_or_not_utf8_is_an_input_error(tmp_path: Path) -> None:
    path = tmp_path / "catalog.jsonl"
    with pytest.raises(InputError, match="no tool catalogue at"):
        ToolCatalog.load_jsonl(path)
    path.write_bytes(b'{"tool_id": "a\xff"}\n')
    with pytest.raises(InputError, match="not UTF-8 at byte 14"):
        ToolCatalog.load_jsonl(path)
