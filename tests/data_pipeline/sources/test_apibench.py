"""APIBench: the released files with their counts, each written form and each defect, and what is refused."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import InputError
from data_pipeline.records.catalog import ToolCatalog
from data_pipeline.records.schema import ToolRecord
from data_pipeline.sources.apibench import MAX_DESCRIPTION_CHARS, read_instruction
from data_pipeline.sources.read import Rejected, SourceReading, read_source

CALL = "torch.hub.load(repo_or_dir='a/b', model='c', pretrained=True)"


def build_row(code: str, call: str = CALL, **card: Any) -> dict[str, Any]:
    data = {"domain": "Vision", "functionality": "Depth", "api_name": "n", "description": "Does it.", "api_call": call}
    return {"code": code, "api_call": call, "provider": "PyTorch", "api_data": data | card}


def write(folder: Path, name: str, rows: list[Any]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


def split_items(reading: SourceReading) -> tuple[list[ToolRecord], list[Rejected]]:
    items = list(reading)
    return [i for i in items if isinstance(i, ToolRecord)], [i for i in items if isinstance(i, Rejected)]


@pytest.fixture
def apibench_dir(shared_dir: Path) -> Path:
    folder = shared_dir / "apibench"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder} with the released files of APIBench")
    return folder


def test_every_released_row_is_a_record(apibench_dir: Path) -> None:
    reading = read_source("apibench", apibench_dir)
    records, rejected = split_items(reading)
    assert rejected == []
    files = Counter(record.record_id.split("/")[1] for record in records)
    assert files == {"torchhub_train": 837, "torchhub_eval": 186, "huggingface_eval": 911}
    assert Counter(record.split for record in records) == {"train": 837, "test": 186 + 911}
    assert reading.repairs == {
        "input joined to the instruction": 61,
        "quotation marks around the instruction left out": 7,
        "no output behind the instruction": 4,
        "empty input left out": 3,
    }
    assert len(reading.catalog) == 94 + 581 + 1, "PyTorch Hub's, Hugging Face's, and none of them"
    assert {len(record.valid_tool_ids) for record in records} == {1}
    assert [r.source_index for r in records if r.split == "test"] == list(range(186 + 911))
    assert "Apache License 2.0" in reading.licence


def test_released_ids_are_one_to_one_with_calls_but_for_known_ones(apibench_dir: Path) -> None:
    """Two calls of one tool load one model or repository; two tools of one call only where the call names none."""
    calls_of: dict[str, set[str]] = {}
    tools_of: dict[str, set[str]] = {}
    lines = {
        name: (apibench_dir / f"{name}.json").read_text().split("\n")
        for name in ("torchhub_train", "torchhub_eval", "huggingface_eval")
    }
    for record in split_items(read_source("apibench", apibench_dir))[0]:
        _, name, position = record.record_id.split("/")
        call = json.loads(lines[name][int(position)])["api_call"]
        calls_of.setdefault(record.valid_tool_ids[0], set()).add(call.replace(" ", ""))
        tools_of.setdefault(call, set()).add(record.valid_tool_ids[0])
    assert {tool: len(calls) for tool, calls in calls_of.items() if len(calls) > 1} == {
        "MIT/ast-finetuned-speech-commands-v2": 2,
        "julien-c/wine-quality": 2,
    }
    assert {call: len(tools) for call, tools in tools_of.items() if len(tools) > 1} == {
        "joblib.load('model.joblib')": 19
    }


def test_released_words_and_entries(apibench_dir: Path) -> None:
    reading = read_source("apibench", apibench_dir / "torchhub_eval.json")
    records, _ = split_items(reading)
    by_id = {record.record_id: record for record in records}
    assert len(records) == 837 + 186
    first = by_id["apibench/torchhub_eval/0"]
    assert first.instruction == "What is an API that can be used to classify sports activities in videos?"
    assert first.valid_tool_ids == ("facebookresearch/pytorchvideo:slow_r50",)
    assert by_id["apibench/torchhub_eval/88"].instruction.endswith("using an API.\nzebra.jpg")
    unclosed = by_id["apibench/torchhub_train/396"].instruction
    assert unclosed.endswith("Suggest an image recognition API for this purpose.")
    tool = reading.catalog["intel-isl/MiDaS:DPT_Hybrid"]
    assert tool.description.startswith("Classification: Computing relative depth from a single image. MiDaS computes")
    assert tool.call == "torch.hub.load(repo_or_dir='intel-isl/MiDaS', model='DPT_Hybrid', pretrained=True)"
    longest = max(len(tool.description) for tool in reading.catalog)
    assert longest <= MAX_DESCRIPTION_CHARS


@pytest.mark.parametrize(
    ("code", "instruction", "repair"),
    [
        ("{'Instruction': Do it, 'now'., 'Output': {'domain': 'x'}}", "Do it, 'now'.", ""),
        ("{'Instruction': Do it., 'Output':{'domain': 'x', never closed", "Do it.", ""),
        ("###Instruction: Do it.\n###Output: <<<domain>>>: x", "Do it.", ""),
        ("### Instruction: Do it. \n\n### Output:\n<<<domain>>>: x", "Do it.", ""),
        ("###Instruction: Do it.\n###Output: a\n###Input: b\n###Output: c", "Do it.", ""),
        ("{'Instruction': \"I'm it.\", 'Output': {}}", "I'm it.", "quotation marks around the instruction left out"),
        ("{'Instruction': 'Do it.', 'Output': {}}", "Do it.", "quotation marks around the instruction left out"),
        ("{'Instruction': Do it?', 'Output': {}}", "Do it?", "quotation marks around the instruction left out"),
        ('###Instruction: "A" and "B"\n###Output: x', '"A" and "B"', ""),
        ("###Instruction: Do it.", "Do it.", "no output behind the instruction"),
        ("{'Instruction': Do it., 'Input': 'now', 'Output': 'x'}", "Do it.\nnow", "input joined to the instruction"),
        (
            '###Instruction: Do it.\n###Input: "a", "b"\n###Output: x',
            'Do it.\n"a", "b"',
            "input joined to the instruction",
        ),
        ("{'Instruction': Do it., 'Input': '<noinput>', 'Output': 'x'}", "Do it.", "empty input left out"),
        ("###Instruction: Do it.\n\n**Input:<noinput>**\n###Output: x", "Do it.", "empty input left out"),
    ],
)
def test_each_written_form_and_defect(code: str, instruction: str, repair: str) -> None:
    repairs: Counter[str] = Counter()
    assert read_instruction(code, repairs) == instruction
    assert repairs == ({repair: 1} if repair else {})


def test_what_cannot_be_mended_is_rejected_with_its_place(tmp_path: Path) -> None:
    good = "###Instruction: Do it.\n###Output: x"
    rows = [
        build_row(good),
        build_row("Do it."),
        build_row("###Instruction: ''\n###Output: x"),
        {"code": good, "api_call": CALL},
        build_row(good) | {"code": 5},
        build_row(good, description=None),
        build_row(good, call=" "),
        build_row(good, call="f()", api_name=""),
        build_row("###Instruction: \ud800\n###Output: x"),
        ["no object"],
        build_row(good) | {"api_data": None},
    ]
    reading = read_source("apibench", write(tmp_path, "torchhub_eval.json", rows))
    records, rejected = split_items(reading)
    assert [record.instruction for record in records] == ["Do it."]
    assert Counter(item.reason for item in rejected) == {
        "code is in neither of the two written forms": 1,
        "the instruction is empty": 1,
        "not in the released form: code, api_call or a text of api_data is missing or no text": 5,
        "the API call is empty": 1,
        "neither the call nor the card names the API": 1,
        "the text holds a lone surrogate": 1,
    }
    assert rejected[0].where == "torchhub_eval.json, line 2"
    assert reading.repairs == {}, "what is rejected is not counted as mended"


def test_one_question_with_several_right_calls_is_one_record(tmp_path: Path) -> None:
    other = CALL.replace("'c'", "'d'")
    rows = [
        build_row("###Instruction: Do it.\n###Output: x"),
        build_row("###Instruction: Else.\n###Output: x"),
        build_row("{'Instruction': do  it., 'Output': x}", other, functionality=["Depth", "Width"]),
        build_row("###Instruction: Do it.\n###Output: y"),
    ]
    write(tmp_path, "torchhub_eval.json", rows)
    write(tmp_path, "torchhub_train.json", rows[:1])
    write(tmp_path, "tensorflow_eval.json.gz", [build_row(rows[1]["code"], "hub.load('https://tfhub.dev/t/1')")])
    reading = read_source("apibench", tmp_path)
    records, _ = split_items(reading)
    found = [(r.split, r.instruction, r.valid_tool_ids, r.source_index) for r in records]
    assert found == [
        ("train", "Do it.", ("a/b:c",), None),
        ("test", "Do it.", ("a/b:c", "a/b:d"), 0),
        ("test", "Else.", ("a/b:c", "t/1"), 1),
    ]
    assert reading.merged_source_indexes == {0: [2, 3], 1: [4]}
    assert reading.repairs == {"question repeated": 1, "question repeated with another right API": 2}
    assert reading.catalog["a/b:d"].description == "Vision: Depth, Width. Does it."


def test_files_and_splits(tmp_path: Path) -> None:
    row = build_row("###Instruction: Do it.\n###Output: x")
    train = write(tmp_path, "torchhub_train.json", [row])
    assert [record.split for record in split_items(read_source("apibench", train))[0]] == [""], "the split is ours"
    write(tmp_path, "huggingface_eval.json", [row])
    assert [record.split for record in split_items(read_source("apibench", tmp_path))[0]] == ["train", "test"]
    (record,), _ = split_items(read_source("apibench", tmp_path / "huggingface_eval.json"))
    assert (record.record_id, record.source_index) == ("apibench/huggingface_eval/0", 0)
    write(tmp_path, "torchhub_train.json.gz", [row])
    with pytest.raises(InputError, match=r"torchhub_train\.json and torchhub_train\.json\.gz; keep one"):
        read_source("apibench", tmp_path)


def test_what_is_not_there_or_named_otherwise_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds none of torchhub_train\.json"):
        read_source("apibench", tmp_path)
    with pytest.raises(InputError, match="no file or folder"):
        read_source("apibench", tmp_path / "absent")
    with pytest.raises(InputError, match=r"is not named as the released files are, such as torchhub_eval\.json"):
        read_source("apibench", write(tmp_path, "mine.json", []))
    (tmp_path / "torchhub_eval.json").write_text("{]\n")
    with pytest.raises(InputError, match=r"torchhub_eval\.json, line 1: not valid JSON"):
        read_source("apibench", tmp_path)


def test_the_call_stays_with_the_tool(tmp_path: Path) -> None:
    row = build_row("###Instruction: Do it.\n###Output: x")
    catalog = read_source("apibench", write(tmp_path, "torchhub_eval.json", [row])).catalog
    catalog.save_jsonl(tmp_path / "catalog.jsonl")
    assert ToolCatalog.load_jsonl(tmp_path / "catalog.jsonl")["a/b:c"].call == CALL
    assert '"call"' not in (tmp_path / "catalog.jsonl").read_text().split("\n")[1], "left out where it is empty"
