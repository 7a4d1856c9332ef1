"""Media for questions, by their captions or rendered, with their licences; and calls that are tried on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from scripted_teacher import ScriptedTeacher, question_settings, scripted_teacher

from data_pipeline.records.catalog import Tool, ToolCatalog
from data_pipeline.records.schema import Modality, ToolRecord
from data_pipeline.sources.jsonl import read_jsonl
from ray_jobs.cli import main

TOOLS = ToolCatalog(
    [
        Tool("local/dehaze-image", "Removes haze and fog from a picture.", "image", "image"),
        Tool("shop/count-trains", "Counts trains in a station.", "image", "text"),
        Tool("shop/invoice", "Writes an invoice for a customer.", "text", "text"),
        Tool("unknown", "None of them."),
    ]
)
CAPTIONS = [
    {"file": "1.png", "caption": "Haze and fog over a picture of hills.", "licence": "CC0-1.0"},
    {"file": "2.png", "caption": "Two trains in a station.", "licence": "CC-BY-4.0"},
]


def generate(folder: Path, teacher: ScriptedTeacher, *more: str) -> int:
    TOOLS.save_jsonl(folder / "tools.jsonl")
    return main(["generate", *question_settings(folder, teacher, "name=m", *more)])


def test_captions_choose_the_file_and_licences_go_with_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for row in CAPTIONS:
        Image.new("RGB", (8, 8), (int(row["file"][0]), 0, 0)).save(tmp_path / row["file"])
    captions = tmp_path / "captions.jsonl"
    captions.write_text("".join(json.dumps(row) + "\n" for row in CAPTIONS), encoding="utf-8")
    test = tmp_path / "test.jsonl"
    test.write_text(json.dumps({"instruction": "Other words", "media": "2.png"}) + "\n", encoding="utf-8")
    with scripted_teacher() as teacher:
        assert generate(tmp_path, teacher, f"generate.media_captions={captions}", f"generate.leak_check={test}") == 0
        result: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert generate(tmp_path, teacher, "generate.render_media=true", f"generate.media_captions={captions}") == 2
    assert result["media"] == {"files": 2, "licences": {"CC0-1.0": 1, "CC-BY-4.0": 1}}
    assert result["without_medium"] == 0
    folder = tmp_path / "runs/m/generated"
    rows = [json.loads(line) for line in (folder / "records.jsonl").read_text(encoding="utf-8").splitlines()]
    wanted = {"local/dehaze-image": ("1.png", "CC0-1.0", "none"), "shop/count-trains": ("2.png", "CC-BY-4.0", "medium")}
    for row in rows:
        medium, licence, leak = wanted.get(row["tools"][0], (None, "", "none"))
        assert (row.get("media"), row["media_licence"], row["check_leak"]) == (medium, licence, leak)
    used = [json.loads(line) for line in (folder / "media.jsonl").read_text(encoding="utf-8").splitlines()]
    assert used == [row | {"questions": 10} for row in CAPTIONS]
    # a row that a person dropped is left out, and the corpus's manifest names the terms
    rows[0] |= {"review": "drop", "review_note": "dull"}
    (folder / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    reading = read_jsonl(folder / "records.jsonl", tmp_path)
    items = list(reading.items)
    (dropped,) = (item for item in items if not isinstance(item, ToolRecord))
    assert (dropped.reason, dropped.where.endswith("line 1: dull")) == ("dropped in review", True)
    assert len(items) == len(rows)
    assert "CC-BY-4.0 (10 rows), CC0-1.0 (9 rows)" in reading.all_terms, "once they are read"


@pytest.mark.slow
def test_rendered_media_and_calls_tried_on_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with scripted_teacher() as teacher:
        assert generate(tmp_path, teacher, "generate.render_media=true", "generate.try_calls=true") == 0
        result = json.loads(capsys.readouterr().out.splitlines()[-1])
        folder = tmp_path / "runs/m"
        written = (folder / "generated/records.jsonl").read_bytes()
        assert generate(tmp_path, teacher, "generate.render_media=true", "generate.try_calls=true") == 0
        assert (folder / "generated/records.jsonl").read_bytes() == written
    assert result["checks"]["check_call"] == {"not tried": 10, "ok": 10}
    records = list(read_jsonl(folder / "generated/records.jsonl", folder / "rendered").items)
    pictures = [record for record in records if isinstance(record, ToolRecord) and record.modality is Modality.IMAGE]
    assert len(pictures) == 20
    for record in pictures:
        Image.open(folder / "rendered" / record.media_uri).verify()
