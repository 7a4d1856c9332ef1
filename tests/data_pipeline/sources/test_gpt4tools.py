"""The released GPT4Tools rows: good ones become dialogues, others are rejected with a reason, bad files are errors."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import InputError
from data_pipeline.records.catalog import Tool
from data_pipeline.records.dialogue import render_answer, render_call, render_dialogue_prompt, render_image_note
from data_pipeline.records.schema import Modality, ToolRecord
from data_pipeline.sources.gpt4tools_catalog import GPT4TOOLS_TOOLS, UNSEEN_TOOL_IDS, find_tool_id
from data_pipeline.sources.read import read_source
from data_pipeline.sources.reading import Rejected

EDGES, CROP = (find_tool_id(name) for name in ("Edge Detection On Image", "Crop the Given Object"))
BY_ID = {tool.tool_id: tool for tool in GPT4TOOLS_TOOLS}
PROMPT = render_dialogue_prompt(
    [BY_ID[EDGES], BY_ID[CROP], Tool("x", name="Fold It", usage="to fold.")],
    render_image_note("image/a.png", "x"),
    "Go.",
)
CALL = render_call("Edge Detection On Image", "image/a.png")
CHAIN = CALL + " image/b.png\n" + render_call("Fold It", "image/b.png") + " image/c.png\n" + render_answer("Done.")


def _row(output: Any = CALL, **fields: Any) -> dict[str, Any]:
    return {"instruction": PROMPT, "input": "", "output": output, **fields}


def _read(path: Path, rows: object) -> list[ToolRecord | Rejected]:
    path.write_text(json.dumps(rows), encoding="utf-8")
    return list(read_source("gpt4tools", path))


def test_the_catalogue_has_the_31_tools_of_the_paper() -> None:
    assert len(BY_ID) == 31
    assert len(UNSEEN_TOOL_IDS) == 8
    assert BY_ID[CROP].name == "Crop the Given Object"
    assert BY_ID[CROP].arguments == ("image_path", "object")
    assert CROP in UNSEEN_TOOL_IDS
    assert all(tool.usage and tool.description and tool.arguments for tool in GPT4TOOLS_TOOLS)
    assert find_tool_id("Segment the given object") in BY_ID, "the released data write it so"
    assert find_tool_id("Detect the Give Object") in BY_ID, "and so"
    assert find_tool_id("画像") != find_tool_id("写真")


def test_rows_become_dialogues(tmp_path: Path) -> None:
    rows = [_row(CALL + "\n\n"), _row(CHAIN, id="c"), _row(render_answer("Hi.")), _row(CALL + " image/b.png")]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    reading = read_source("gpt4tools", path)
    single, chain, talk, cut = (item for item in reading if isinstance(item, ToolRecord))
    assert (single.instruction, single.modality, single.split) == (PROMPT, Modality.TEXT, "")
    assert "".join(turn.text for turn in single.turns) == CALL, "the reference strips outputs"
    assert "".join(turn.text for turn in chain.turns) == CHAIN
    assert len(chain.turns) == 5
    assert (single.record_id, chain.record_id) == ("gpt4tools/0", "gpt4tools/c")
    assert single.valid_tool_ids == (EDGES,)
    assert chain.valid_tool_ids == (EDGES, "gpt4tools/fold-it")
    assert talk.valid_tool_ids == ("unknown",)
    assert single.candidate_tool_ids == (EDGES, CROP, "gpt4tools/fold-it")
    assert cut.turns == single.turns
    assert dict(reading.repairs) == {"observation after the last call left out": 1}
    assert reading.catalog["gpt4tools/fold-it"] == Tool("gpt4tools/fold-it", name="Fold It", usage="to fold.")
    assert len(reading.catalog) == 31 + 1 + 1


def test_a_rejected_row_brings_no_tools(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    odd = PROMPT.replace("> Fold It:", "> New One: to do.\n> Bad [beta]:")
    path.write_text(json.dumps([_row() | {"instruction": odd}, _row(CHAIN)]), encoding="utf-8")
    reading = read_source("gpt4tools", path)
    assert [type(item) for item in reading] == [Rejected, ToolRecord]
    assert "gpt4tools/fold-it" in reading.catalog
    assert "gpt4tools/new-one" not in reading.catalog


def test_line_breaks_of_other_systems_are_mended(tmp_path: Path) -> None:
    rows = [_row(CHAIN), _row(CHAIN.replace("\n", "\r\n"), instruction=PROMPT.replace("\n", "\r\n"), id=None)]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    reading = read_source("gpt4tools", path)
    plain, mended = (item for item in reading if isinstance(item, ToolRecord))
    assert (mended.instruction, mended.turns) == (plain.instruction, plain.turns)
    assert mended.record_id == "gpt4tools/1", "null is no id"
    assert dict(reading.repairs) == {"line breaks of a dialogue (CR LF) read as LF": 1}


def test_ids_are_read_as_pandas_writes_them(tmp_path: Path) -> None:
    first, second = _read(tmp_path / "rows.json", [_row(id=3.0), _row(id=None)])
    assert isinstance(first, ToolRecord)
    assert isinstance(second, ToolRecord)
    assert (first.record_id, second.record_id) == ("gpt4tools/3", "gpt4tools/1")


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl.gz"])
def test_a_row_nested_too_deeply_is_rejected_alone(tmp_path: Path, name: str) -> None:
    lines = [json.dumps(_row()), '{"instruction": ' + "[" * 100_000 + "]" * 100_000 + "}", json.dumps(_row())]
    is_packed = name.endswith(".gz")
    text = "\n".join(lines) if is_packed else f"[{','.join(lines)}]"
    (tmp_path / name).write_bytes(gzip.compress(text.encode()) if is_packed else text.encode())
    good, bad, last = read_source("gpt4tools", tmp_path / name)
    assert isinstance(good, ToolRecord)
    assert isinstance(last, ToolRecord)
    assert bad == Rejected("nested too deeply", f"{name}, record 1")


def test_json_lines_are_the_same(tmp_path: Path) -> None:
    rows = [_row(CALL), _row(CHAIN)]
    as_list = _read(tmp_path / "rows.json", rows)
    path = tmp_path / "rows.jsonl"
    path.write_text("\ufeff" + "\n\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    assert list(read_source("gpt4tools", path)) == as_list


def test_a_folder_prescribes_the_splits(tmp_path: Path) -> None:
    for name in ("gpt4tools_71k.json", "val.json", "gpt4tools_test_unseen.json"):
        (tmp_path / name).write_text(json.dumps([_row(CALL)]), encoding="utf-8")
    records = [item for item in read_source("gpt4tools", tmp_path) if isinstance(item, ToolRecord)]
    assert [(r.split, r.record_id) for r in records] == [(s, f"gpt4tools/{s}/0") for s in ("train", "val", "test")]
    (tmp_path / "val.json.gz").write_bytes(gzip.compress((tmp_path / "val.json").read_bytes()))
    with pytest.raises(InputError, match=r"holds val\.json and val\.json\.gz; keep one"):
        read_source("gpt4tools", tmp_path)
    (tmp_path / "val.json").unlink()
    assert len(list(read_source("gpt4tools", tmp_path))) == 3
    (tmp_path / "val.json.gz").unlink()
    (tmp_path / "gpt4tools_test_unseen.json").unlink()
    (record,) = read_source("gpt4tools", tmp_path)
    assert isinstance(record, ToolRecord)
    assert record.split == "", "training rows alone are split by us"
    (tmp_path / "train.json").write_text("[]", encoding="utf-8")
    with pytest.raises(InputError, match=r"holds train\.json and gpt4tools_71k\.json; keep one"):
        read_source("gpt4tools", tmp_path)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("text", "not in the released form"),
        ({"instruction": PROMPT}, "not in the released form"),
        (_row(7), "not in the released form"),
        (_row(input="more words"), "not in the released form"),
        (_row(id=1.5), "the id is neither"),
        (_row(" \n"), "the instruction or the output is empty"),
        (_row("\ud800"), "lone surrogate"),
        (_row("Hello."), "neither a tool call nor an answer"),
        (_row(CALL + " x\nThought: what now?"), "neither a tool call nor an answer"),
        (_row(render_answer("Hi.") + "\nObservation: x\n" + CALL), "neither a tool call nor an answer"),
        (_row(render_call("Predict Depth On Image", "image/a.png")), "that the prompt does not offer"),
        (_row(CHAIN, id=0), "an id that an earlier record"),
        (_row() | {"instruction": PROMPT.replace("> Fold It:", "> Bad [beta]:")}, "that no catalogue can hold"),
        (
            _row() | {"instruction": PROMPT.replace("> Fold It: to", "> Fold Me: to\u2028do")},
            "that no catalogue can hold",
        ),
        (_row() | {"instruction": PROMPT.replace("> Fold It:", "> Fold\u2028Me:")}, "that no catalogue can hold"),
    ],
)
def test_rows_that_do_not_follow_the_form_are_rejected(tmp_path: Path, row: object, reason: str) -> None:
    good, bad = _read(tmp_path / "rows.json", [_row(CALL), row])
    assert isinstance(good, ToolRecord)
    assert isinstance(bad, Rejected)
    assert reason in bad.reason
    assert bad.where == "rows.json, record 1"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[{]", "not valid JSON"),
        (b'{"instruction": "a"}\n{"instruction"', "line 2: not valid JSON"),
        (b"\xff[]", "not UTF-8 at byte 0"),
        (b'{"data": []}', "holds a dict; it must be a JSON list"),
    ],
)
def test_files_that_cannot_be_read_are_errors(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_source("gpt4tools", path)


def test_paths_without_data_are_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file or folder"):
        read_source("gpt4tools", tmp_path / "absent")
    with pytest.raises(InputError, match=r"holds none of train\.json"):
        read_source("gpt4tools", tmp_path)
