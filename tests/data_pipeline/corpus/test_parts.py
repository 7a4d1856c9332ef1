"""A corpus that passes through many parts and tasks is, byte for byte, the one that is built in one piece."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.corpus import build, collect, parts
from data_pipeline.corpus.build import Corpus, PrepareOptions, build_corpus
from data_pipeline.errors import InputError
from data_pipeline.sources import rows as source_rows

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("ray_session")]

WHOLE_HASH = "6629522f9ddf60f62f561aa9a01ebcba8d4f6c7100d918a037d543ac54aa3af9"
TOOLS = [f"t{number}" for number in range(12)]


def _write(folder: Path, n_rows: int = 900) -> Path:
    """Questions of which half repeat others in another spelling, sounds some of them missing or equal."""
    chosen = random.Random(7)
    (folder / "media").mkdir()
    for number in range(40):
        (folder / f"media/{number}.wav").write_bytes(b"sound %d" % (number // 2 if number < 8 else number))
    (folder / "catalog.txt").write_text("\n".join(TOOLS), encoding="utf-8")
    lines = []
    for _ in range(n_rows):
        number = chosen.randrange(400)
        words = f"Question {number} of  the thing" if chosen.random() < 0.5 else f"question {number} OF the thing"
        row: dict[str, Any] = {"instruction": words, "tools": chosen.sample(TOOLS[: 3 + number % 9], 1 + number % 3)}
        if chosen.random() < 0.3:
            row["media"] = f"media/{chosen.randrange(45)}.wav"
        lines.append(json.dumps(row))
    path = folder / "records.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _cut_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_ROWS", 100)
    monkeypatch.setattr(collect, "PART_ROWS", 100)
    monkeypatch.setattr(source_rows, "PIECE_BYTES", 15_000)


def test_many_parts_give_the_bytes_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = PrepareOptions.model_validate({"source": "jsonl", "path": _write(tmp_path), "shard_rows": 150})
    whole = build_corpus(options, tmp_path / "corpus", 4)
    assert whole.data_hash == WHOLE_HASH, "what was built when the records were still held in memory"
    expected = _files(whole.path)
    assert not [name for name in expected if name.startswith(build.WORK_FOLDER)]
    _cut_small(monkeypatch)
    told: list[tuple[int, int | None, str]] = []
    cut = build_corpus(options, tmp_path / "corpus", 4, lambda *progress: told.append(progress))
    assert len([each for each in told if each[2] == "records"]) == len(source_rows.cut_rows(tmp_path / "records.jsonl"))
    assert _files(cut.path) == expected
    again = {**options.model_dump(mode="json"), "also": [{"source": "toolmm-mini-dialogues", "size": "test"}]}
    united = build_corpus(PrepareOptions.model_validate(again), tmp_path / "united", 4)
    assert united.manifest["duplicates_merged"] == whole.manifest["duplicates_merged"]
    assert sum(split["questions"] for split in united.manifest["counts"].values()) == 37 + 7 + 21 + sum(
        Corpus.open(cut.path).table(split).num_rows for split in ("train", "val", "test")
    )


def test_a_fault_in_a_task_names_the_line_and_foreign_rows_are_read_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _write(tmp_path)
    chat = {"messages": [{"role": "user", "content": "Go"}, {"role": "assistant", "content": "t3"}]}
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([*lines, json.dumps(chat)]), encoding="utf-8")
    options = PrepareOptions.model_validate({"source": "jsonl", "path": path})
    whole = build_corpus(options, tmp_path / "whole")
    _cut_small(monkeypatch)
    assert _files(build_corpus(options, tmp_path / "cut").path) == _files(whole.path)
    lines[700] = '{"instruction": "Who?", "tools": ["t77"]}'
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(InputError, match=r"records\.jsonl, line 701: tool 't77' is not in the catalogue"):
        build_corpus(options, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
