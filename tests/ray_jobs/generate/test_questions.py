"""Questions for a user's own tools, from a teacher over HTTP to a corpus that can be trained on."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from scripted_teacher import ScriptedTeacher, scripted_teacher

from data_pipeline.records.catalog import Tool, ToolCatalog
from data_pipeline.records.schema import ToolRecord
from data_pipeline.sources.jsonl import read_jsonl
from ray_jobs.cli import main

SHOP = ToolCatalog(
    [
        Tool("shop/mend-rain", "Removes streaks of rain from a picture.", "image", "image"),
        Tool("shop/mend-haze", "Removes haze of mornings from a picture.", "image", "image"),
        Tool("shop/stock-by-name", "Tells how many pieces of an article are in stock.", "text", "text"),
        Tool("shop/stock-by-code", "Tells how many pieces of an article with a code are in stock.", "text", "text"),
        Tool("shop/count", "Counts pieces of an article in stock.", "text", "text"),
        Tool("shop/invoice", "Writes an invoice for a customer.", "text", "text"),
        Tool("unknown", "None of them."),
    ]
)
GROUPS = [
    {"tools": ["shop/mend-rain", "shop/mend-haze"], "ambiguity": "quality"},
    {"tools": ["shop/stock-by-name", "shop/count"]},
]
MEDIA = [{"media": "rain.png", "tools": ["shop/mend-rain"]}, {"media": "haze.png", "tools": ["shop/mend-haze"]}]


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    SHOP.save_jsonl(tmp_path / "tools.jsonl")
    for name, rows in (("groups", GROUPS), ("media", MEDIA)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for row in MEDIA:
        Image.new("RGB", (8, 8)).save(tmp_path / str(row["media"]))
    return tmp_path


def generate(shop: Path, teacher: ScriptedTeacher, *more: str) -> int:
    files = [f"generate.{name}={shop / name}.jsonl" for name in ("tools", "groups", "media")]
    settings = f"generate.teacher={{url: {teacher.url}, model: scripted, api_key_env: ''}}"
    given = [f"runs_dir={shop / 'runs'}", "name=q", "generate.recipe=questions", *files, settings]
    return main(["generate", *given, *more])


def test_a_shops_tools_become_a_corpus(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with scripted_teacher() as teacher:
        assert generate(shop, teacher) == 0
        n_prompts = len(teacher.prompts)
        assert generate(shop, teacher) == 0
        assert len(teacher.prompts) == n_prompts, "a second run pays nothing"
    result: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    kinds = Counter(teacher.lines.values())
    assert result["rejected"] == {"prohibited": kinds["prohibited"]}
    assert result["kept"] == 6 * 10
    assert result["ambiguous"] == 2 * 5
    reading = read_jsonl(shop / "runs/q/generated/records.jsonl", shop, None)
    items = list(reading.items)
    records = [item for item in items if isinstance(item, ToolRecord)]
    assert len(records) == 60 == len(items)
    by_kind = Counter((record.ambiguity_type.value, record.media_uri) for record in records)
    assert by_kind["quality", "rain.png"] == by_kind["quality", "haze.png"] == 5
    for record in records:
        if record.is_ambiguous:
            assert record.valid_tool_ids == (f"shop/mend-{record.media_uri.removesuffix('.png')}",)
            assert set(record.candidate_tool_ids) == {"shop/mend-rain", "shop/mend-haze"}
            assert "rain" not in record.instruction.lower()
            assert "haze" not in record.instruction.lower()
        if "shop/stock-by-name" in record.valid_tool_ids:
            assert "shop/count" in record.valid_tool_ids, "they do the same"
    several = [record for record in records if "shop/stock-by-code" in record.valid_tool_ids]
    assert any(len(record.valid_tool_ids) == 3 for record in several), "the teacher said that it fits as well"


def test_bad_settings_are_one_sentence(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with scripted_teacher() as teacher:
        assert generate(shop, teacher, "generate.tools=null") == 2
        assert "generate.tools is not set" in capsys.readouterr().err
        ToolCatalog([Tool("a")]).save_jsonl(shop / "bare.jsonl")
        assert generate(shop, teacher, f"generate.tools={shop / 'bare.jsonl'}") == 2
        assert "has a description" in capsys.readouterr().err
        assert generate(shop, teacher, "--dry-run") == 0
        assert teacher.prompts == []
    dry = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert dry["requests"] > 8
