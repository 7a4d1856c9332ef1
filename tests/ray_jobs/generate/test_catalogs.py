"""A catalogue from the tools of an MCP server, and from it what a teacher is asked next."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_pipeline.records.catalog import ToolCatalog
from ray_jobs.cli import main

SHARED = Path(__file__).parents[4] / "shared"


def test_an_mcp_servers_tools_become_a_catalogue(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tools = [
        {"name": "find_shelf", "description": "Tells on which shelf an article lies."},
        {"name": "order", "description": "Orders an article again from its maker."},
        {"name": "bare", "description": "Hm."},
    ]
    (tmp_path / "tools.json").write_text(json.dumps({"tools": tools}), encoding="utf-8")
    given = ["generate", f"runs_dir={tmp_path / 'runs'}", "name=c", "generate.recipe=catalog"]
    assert main([*given, f"generate.cards={tmp_path / 'tools.json'}"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["tools"] == 3
    folder = tmp_path / "runs" / "c" / "generated"
    assert ToolCatalog.load_jsonl(folder / "catalog.jsonl").tool_ids == ("find_shelf", "order", "unknown")
    assert "functionality" not in (folder / "catalog.jsonl").read_text(encoding="utf-8"), "nobody has said it"
    (left_out,) = [json.loads(line) for line in (folder / "rejected.jsonl").read_text(encoding="utf-8").splitlines()]
    assert left_out["name"] == "bare"
    more = ["generate.recipe=questions", f"generate.tools={folder / 'catalog.jsonl'}", "--dry-run"]
    assert main([*given, *more]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["requests"] >= 2
    assert main(given) == 2
    assert "generate.cards is not set" in capsys.readouterr().err
    assert main([*given, "--dry-run"]) == 2


def test_models_of_the_hub_are_counted_by_the_papers_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tags = ["fill-mask", "text2text-generation", "text2text-generation", "token-classification", "robotics"]
    rows = [
        {"modelId": f"lab/{n}", "pipeline_tag": tag, "description": f"Does thing number {n} well."}
        for n, tag in enumerate(tags)
    ]
    (tmp_path / "models.json").write_text(json.dumps(rows), encoding="utf-8")
    given = ["generate", f"runs_dir={tmp_path / 'runs'}", "name=c", "generate.recipe=catalog"]
    assert main([*given, f"generate.cards={tmp_path / 'models.json'}"]) == 0
    out = capsys.readouterr().out
    result = json.loads(out.splitlines()[-1])
    assert result["tasks"] == {"Text-to-Text": 2, "Fill-Mask": 1, "token-classification": 1}
    assert result["rejected"] == {"its task": 1}
    assert "2 of the 28 tasks of that table; 1 tools are for others." in out


@pytest.mark.skipif(not (SHARED / "apibench").is_dir(), reason="no apibench beside the project")
def test_apibenchs_cards_become_a_catalogue_with_functionality_and_code(tmp_path: Path) -> None:
    cards = SHARED / "apibench" / "torchhub_eval.json"
    given = ["generate", f"runs_dir={tmp_path / 'runs'}", "name=c", "generate.recipe=catalog"]
    assert main([*given, f"generate.cards={cards}"]) == 0
    file = tmp_path / "runs" / "c" / "generated" / "catalog.jsonl"
    entries = {entry["tool_id"]: entry for entry in map(json.loads, file.read_text(encoding="utf-8").splitlines())}
    entry = entries["facebookresearch/pytorchvideo:slow_r50"]
    stated = json.loads(cards.read_text(encoding="utf-8").split("\n")[0])["api_data"]
    assert entry["coarse_functionality"] == entry["domain"] == stated["domain"]
    assert entry["fine_functionality"] == stated["functionality"]
    assert entry["parameters"]["properties"] == {"pretrained": {"type": "boolean", "examples": [True]}}
    assert entry["example_code"] == "\n".join(stated["example_code"])
    assert main([*given, f"generate.cards={file}", f"runs_dir={tmp_path / 'again'}"]) == 0
    assert (tmp_path / "again/c/generated/catalog.jsonl").read_bytes() == file.read_bytes(), "a catalogue is cards too"
