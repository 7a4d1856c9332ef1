"""Groups of tools and media as users write them down; what does not fit the catalogue is said with its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import InputError
from data_pipeline.instruct.groups import group_by_functionality, read_groups, read_media
from data_pipeline.records.catalog import Tool
from data_pipeline.records.schema import AmbiguityType

TOOLS = ("a", "b", "c", "d")


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_groups_and_media(tmp_path: Path) -> None:
    file = write(tmp_path / "groups.jsonl", {"tools": ["a", "b"]}, {"tools": ["b", "c", "d"], "ambiguity": "quality"})
    groups = read_groups(file, TOOLS)
    assert groups.same == {"a": ("b",), "b": ("a",)}
    assert set(groups.ambiguous) == {"b", "c", "d"}
    assert groups.ambiguous["c"].tools == ("b", "c", "d")
    assert groups.ambiguous["c"].ambiguity is AmbiguityType.QUALITY
    rows = ({"media": "1.png", "tools": ["c", "d"], "licence": "CC0-1.0"}, {"media": "2.png", "tools": ["c"]})
    assert read_media(write(tmp_path / "media.jsonl", *rows), TOOLS) == (
        {"1.png": ("c", "d"), "2.png": ("c",)},
        {"c": ["1.png", "2.png"], "d": ["1.png"]},
        {"1.png": "CC0-1.0"},
    )


def test_tools_of_one_subtask_and_the_same_media_are_of_one_function() -> None:
    def make(tool_id: str, coarse: str, fine: str, given: str = "image") -> Tool:
        return Tool(tool_id, "", given, "image", coarse_functionality=coarse, fine_functionality=fine)

    tools = [
        make("a", "image-to-image", "Image Deraining"),
        make("b", "image-to-image", "Image Dehazing"),
        make("c", "image-to-image", "image  deraining"),
        make("d", "image-to-image", "Image Deraining", "video"),
        make("e", "mask-generation", "Image Deraining"),
        make("f", "image-to-image", ""),
        make("g", "image-to-image", ""),
        make("h", "image-to-image", "Image Deraining"),
        Tool("i"),
        Tool("j"),
    ]
    groups = group_by_functionality(tools)
    assert groups.same == {"a": ("c", "h"), "c": ("a", "h"), "h": ("a", "c")}
    assert groups.ambiguous == {}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"tools": ["a"]}], "line 1: a group has two tools or more"),
        ([{"tools": ["a", "x"]}], "line 1: the catalogue has no tool 'x'"),
        ([{"tools": "a"}], "line 1: tools is 'a'"),
        ([7], "line 1: tools is None"),
        ([{"tools": ["a", "b"], "ambiguity": "none"}], "ambiguity is 'none'; it is one of domains"),
        ([{"tools": ["a", "b"]}, {"tools": ["b", "c"]}], "line 2: 'b' is in an earlier group"),
    ],
)
def test_faulty_groups(tmp_path: Path, rows: list[Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_groups(write(tmp_path / "groups.jsonl", *rows), TOOLS)


def test_faulty_media(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no file"):
        read_media(tmp_path / "none.jsonl", TOOLS)
    with pytest.raises(InputError, match="line 1: media is None"):
        read_media(write(tmp_path / "media.jsonl", {"tools": ["a"]}), TOOLS)
    with pytest.raises(InputError, match="line 1: licence is 7"):
        read_media(write(tmp_path / "media.jsonl", {"media": "1.png", "tools": ["a"], "licence": 7}), TOOLS)
    rows = ({"media": "1.png", "tools": ["a"]}, {"media": "1.png", "tools": ["b"]})
    with pytest.raises(InputError, match=r"line 2: '1\.png' is in an earlier row"):
        read_media(write(tmp_path / "media.jsonl", *rows), TOOLS)


def test_groups_are_written_as_they_are_read(tmp_path: Path) -> None:
    rows = [{"tools": ["a", "b"]}, {"tools": ["b", "c"], "ambiguity": "domains"}]
    assert read_groups(write(tmp_path / "groups.jsonl", *rows), TOOLS).to_rows() == rows
