"""The verb `audit`: a page, the same numbers as JSON, and one sentence where there is no corpus."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_pipeline.corpus.build import PrepareOptions, build_corpus
from ray_jobs.cli import main

ROWS = [
    {"instruction": "How many teapots are left?", "tools": ["shop/stock"], "split": "train"},
    {"instruction": "Bill Mrs Li for the lamp.", "tools": ["shop/invoice"], "split": "train"},
    {"instruction": "Is the red kettle still there", "tools": ["shop/stock"], "split": "val"},
    {"instruction": "how many  TEAPOTS are left?", "tools": ["shop/stock"], "split": "test"},
]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """One whose test split has a question of training, at the place of the run `a`'s own."""
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    (tmp_path / "catalog.txt").write_text("shop/stock\nshop/invoice\n", encoding="utf-8")
    folder = tmp_path / "runs/a/corpus"
    build_corpus(PrepareOptions(source="jsonl", path=tmp_path / "records.jsonl", media_root=tmp_path), folder)
    return folder


def test_a_runs_own_corpus_and_any_other(tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", f"runs_dir={tmp_path / 'runs'}", "name=a"]) == 0
    out = capsys.readouterr().out
    result = json.loads(out.splitlines()[-1])
    assert Path(result["corpus"]) == corpus
    folder = tmp_path / "runs/a/audit"
    assert Path(result["audit"]) == folder
    numbers = json.loads((folder / "audit.json").read_text(encoding="utf-8"))
    assert {file.name for file in folder.iterdir()} == {"audit.html", "audit.json"}
    assert result["findings"]["exact_leaks"] == numbers["findings"]["exact_leaks"]["n"] == 1
    assert result["found"] == numbers["found"] == sum(result["findings"].values())
    assert "test, text 1" in out, "the table says where"
    assert "Exact leaks" in (folder / "audit.html").read_text(encoding="utf-8")
    # from another run's folder, to which its page goes; the same corpus gives the same page
    assert main(["audit", f"runs_dir={tmp_path / 'runs'}", "name=b", f"audit.corpus={corpus}"]) == 0
    for name in ("audit.html", "audit.json"):
        assert (tmp_path / "runs/b/audit" / name).read_bytes() == (folder / name).read_bytes()


def test_no_corpus_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", f"runs_dir={tmp_path}", f"audit.corpus={tmp_path / 'none'}"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert str(tmp_path / "none") in line
    assert not list(tmp_path.rglob("audit.html"))
